"""Whatever a user gets wrong is one line on stderr that names it, and exit code 2."""

import io
import re
import subprocess
import sys

import pytest

from hotset.cli import run
from hotset.cli.text import read_text
from hotset.core.errors import HotsetError
from hotset.core.version import __version__, commit


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["bogus"], "bogus"),
        (["--bogus"], "--bogus"),
        (["run", "--bogus", "-p", "x"], "--bogus"),
        (["run", "one", "two", "three"], "three"),
        (["run", "one", "two", "-p", "x"], "PROMPT and -p: expected one prompt"),
        (["run", "-p", "x", "-f", __file__], "-p and -f: expected one prompt"),
        (["run", "-f", "no-such.txt"], "no-such.txt cannot be read"),
        (["run", "-m", "a.gguf", "b", "c"], "c: one argument too many beside -m a.gguf"),
        (["bench", "a.gguf", "--model", "b.gguf"], "a.gguf: one argument too many"),
        (["run", "-p", "x", "--tools", "no-such.json"], "no-such.json cannot be read"),
        (["run", "-p", "x", "--tools", __file__], "is no JSON"),
        (["chat", "--template-var", "novalue"], "'novalue': expected KEY=VALUE"),
        (["chat", "--template-var", "a b=1"], "'a b=1': expected KEY=VALUE"),
        (["run", "-p", "x", "--raw", "--think"], "--raw"),
        (["run", "-p", "x", "--raw", "--system", "be"], "--raw"),
        (["run", "-p"], "-p"),
        (["run", "-p", ""], "the prompt is empty"),
        (["run", "-p", " \n "], "the prompt is empty"),
        (["run", "-p", "x", "-n", "0"], "-n"),
        (["run", "-p", "x", "-n", "-4"], "-n"),
        (["run", "-p", "x", "-n", "many"], "-n"),
        (["run", "-p", "x", "--threads", "0"], "--threads"),
        (["run", "-p", "x", "--threads", "two"], "--threads"),
        (["run", "-p", "x", "--context", "-1"], "--context"),
        (["run", "-p", "x", "--temperature", "-0.5"], "temperature"),
        (["run", "-p", "x", "--temperature", "nan"], "temperature"),
        (["run", "-p", "x", "--temperature", "hot"], "--temperature"),
        (["run", "-p", "x", "--top-k", "-1"], "top_k"),
        (["run", "-p", "x", "--top-p", "1.5"], "top_p"),
        (["run", "-p", "x", "--min-p", "-1"], "min_p"),
        (["run", "-p", "x", "--seed", "-2"], "seed"),
        (["run", "-p", "x", "--repetition-penalty", "0"], "repetition_penalty"),
        (["run", "-p", "x", "--presence-penalty", "inf"], "presence_penalty"),
        (["run", "-p", "x", "--vram", "much"], "'much' is no size"),
        (["bench", "--vram", "-1"], "'-1' is no size"),
        (["bench", "--vram", "1GiB", "--sweep", "density"], "--vram goes with neither"),
        (["run", "no-such.gguf", "-p", "x"], "no-such.gguf"),
        (["run", "hf:nonsense", "-p", "x"], "hf:nonsense"),
        (["chat", "no-such.gguf"], "no-such.gguf"),
        (["chat", "--temperature", "-1"], "temperature"),
        (["bench", "no-such.gguf"], "no-such.gguf"),
        (["bench", "--threads", "-1"], "--threads"),
        (["eval", "no-such.gguf"], "--text"),
        (["eval", "--choices", "no-such.jsonl"], "no-such.jsonl"),
        (["eval", "--choices", __file__], "line 1 is no JSON"),
        (["eval", "--choices", "x", "--text", "x"], "--choices goes with neither"),
        (["eval", "--text", "no-such.txt"], "no-such.txt"),
        (["eval", "--text", "."], "."),
        (["eval", "--text", "x", "--tokens", "0"], "--tokens"),
        (["inspect", "no-such.gguf"], "no-such.gguf"),
        (["profile"], "--text"),
        (["profile", "no-such.npz"], "no-such.npz"),
        (["profile", "x.npz", "-o", "y.npz"], "--output"),
        (["profile", "no-such.gguf", "--text", __file__], "no-such.gguf"),
        (["profile", "--text", "no-such.txt"], "no-such.txt"),
        (["profile", "--text", ".", "--import", "."], "--import"),
        (["profile", "--text", __file__, "--context", "4"], "--context"),
        (["profile", "--text", __file__, "--report", "no/such/place"], "there is no directory"),
        (["profile", "--text", __file__, "--report", __file__], "no directory"),
        (["inspect", "--context", "-1"], "--context"),
        (["doctor", "--override", "a=b"], "--override is of a model"),
        (["bench", "--tokens", "x"], "(see hotset bench --help)"),
        (
            ["run", "Why is the sky blue?"],
            "there is no model 'Why is the sky blue?': ask the demo model with",
        ),
    ],
)
def test_wrong_arguments(hotset, arguments, named):
    code, out, err = hotset(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert named in err


@pytest.mark.parametrize(
    "command",
    [
        *(["run", "-p", "x"], ["chat"], ["bench"], ["inspect"], ["doctor"], ["demo"], ["serve"]),
        ["plan", "--vram", "1GiB"],
        *(["eval", "--text", __file__], ["profile", "--text", __file__]),
        ["quantize", "--type", "q8_0", "-o", "no-such.gguf"],
        *(["pull"], ["rm"]),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_name_is_no_model(hotset, command, empty):
    """As of a variable of the shell that is not set."""
    code, out, err = hotset(command[0], empty, *command[1:])
    named = "NAME" if command[0] in ("pull", "rm") else "MODEL"
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"error: {named} is empty: expected ")


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["eval", "--text", __file__, "--against", ""], "MODEL is empty"),
        (["serve", "--api-key", "secret", "--api-key", ""], "--api-key is empty"),
        (["batch", "in.jsonl", "-o", "out.jsonl", "--ray", ""], "--ray is empty"),
    ],
    ids=lambda given: given[0],
)
def test_an_empty_option_is_not_left_out(hotset, demo, command, named):
    code, out, err = hotset(*command)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert named in err


@pytest.mark.parametrize("command", [["run", "-p", "x"], ["chat"], ["bench"], ["inspect"]])
def test_a_text_file_is_no_model(hotset, tmp_path, command):
    path = tmp_path / "notes.gguf"
    path.write_text("This is no model.\n" * 100)
    code, out, err = hotset(command[0], path, *command[1:])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert "notes.gguf" in err


def test_text_that_is_not_utf8(hotset, tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("café".encode("latin-1"))
    code, _, err = hotset("eval", "--text", path)
    assert (code, err) == (2, f"error: {path} is not UTF-8 text: byte 3 cannot be read\n")


def test_a_byte_order_mark_is_no_text(tmp_path, monkeypatch):
    path = tmp_path / "notepad.txt"
    path.write_text("Hi", encoding="utf-8-sig")
    assert read_text(path) == "Hi"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert run._prompt(None, None, None) == "Hi"


def test_no_prompt_at_all(start):
    for data, message in ((b"", "the prompt is empty"), (b"\xff\xfe", "not UTF-8")):
        process = start("run")
        out, err = process.communicate(data, timeout=60)
        assert (process.returncode, out) == (2, b"")
        assert err.startswith(b"error: ")
        assert message in err.decode()


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (MemoryError(), 2, "error: out of memory\n"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
        (
            HotsetError("two\nlines\tand \x1b[31mcolour"),
            2,
            "error: two lines and ?[31mcolour\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_loading_may_raise(hotset, monkeypatch, raised, code, message):
    def fail(*arguments, **options):
        raise raised

    monkeypatch.setattr("hotset.serve.load.open_model", fail)
    assert hotset("inspect", "x") == (code, "", message)


def test_version_and_help(hotset):
    told = f"hotset {__version__}" + (f" ({commit()})" if commit() else "")
    assert hotset("--version") == (0, f"{told}\n", "")
    for arguments in ([], ["--help"], ["-h"]):
        code, out, err = hotset(*arguments)
        assert (code, err) == (0, "")
        assert all(command in out for command in ("run", "chat", "bench", "eval", "inspect", "profile"))


def test_help_shows_brackets(hotset, monkeypatch):
    """Rich takes ``[word]`` for markup, and leaves it out."""
    from typer.main import get_command

    from hotset.cli.app import app

    monkeypatch.setenv("COLUMNS", "200")
    for name, command in get_command(app).commands.items():
        told = [command.help, *(getattr(option, "help", None) for option in command.params)]
        words = [word for text in told for word in (text or "").replace("\\[", "[").split() if "[" in word]
        code, out, err = hotset(name, "--help")
        assert (code, err, [word for word in words if word not in out]) == (0, "", [])
    assert "(needs hotset[serve])" in hotset("run", "--help")[1]


def test_help_is_wrapped_as_the_terminal_is_wide(hotset, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    code, out, err = hotset("convert", "--help")
    assert (code, err) == (0, "")
    paragraph = out.partition("Only then ")[2].partition(" \n   ")[0].splitlines()
    assert len(paragraph) > 3
    assert all(len(line.strip()) > 50 for line in paragraph[1:-1])


def test_the_version_names_the_commit_of_the_build(tmp_path):
    assert commit(tmp_path) == ""
    (tmp_path / "commit.txt").write_text("0123456789ab-dirty\n")
    assert commit(tmp_path) == "0123456789ab-dirty"


def test_nothing_heavy_is_imported_before_it_is_needed():
    script = (
        "import sys, hotset.cli.app\n"
        "heavy = {'numpy', 'rich', 'prompt_toolkit', 'tokenizers', 'jinja2', 'gguf', 'hotset.serve.engine'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"


@pytest.mark.parametrize(
    "command", [["run", "-p", "x"], ["chat"], ["bench"], ["eval", "--text", __file__]], ids=lambda c: c[0]
)
@pytest.mark.parametrize(
    ("reason", "named"),
    [
        ("the GPU's part needs torch: pip install 'hotset[gpu]'", "pip install 'hotset\\[gpu\\]'"),
        ("this machine has no GPU that torch can use", "no GPU.*without --vram the CPU does all"),
    ],
)
def test_no_gpu(hotset, demo, monkeypatch, command, reason, named):
    from hotset.placing import doctor

    monkeypatch.setattr(doctor, "no_gpu", lambda: reason)
    code, out, err = hotset(command[0], demo, *command[1:], "--vram", "1GiB")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert re.search(named, err)
