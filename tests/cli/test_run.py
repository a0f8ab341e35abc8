"""`hotset run` with the habits of people who come from llama.cpp, Ollama and LM Studio."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.systems import on_posix
from helpers.terminal import Terminal

QUESTION = "Where is the Eiffel Tower?"
SPEED = re.compile(
    r"prompt: (\d+) tokens, [\d.]+ tokens/s; answer: (\d+) tokens(, [\d.]+ tokens/s)?; "
    r"(?:drafts: \d+ of \d+ tokens? accepted; )?computed: all neurons\n"
)


@pytest.fixture
def answer(hotset: Any, demo: Path) -> str:
    """Ten tokens of the answer to QUESTION."""
    code, out, err = hotset("run", demo, "-p", QUESTION, "-n", "10", "-q")
    assert (code, err) == (0, "")
    assert out.startswith("The Eiffel Tower is")
    return str(out)


@pytest.mark.parametrize(
    "arguments",
    [
        ["{model}", QUESTION],
        ["-m", "{model}", QUESTION],
        [QUESTION, "-m", "{model}"],
        ["--model={model}", "-p", QUESTION],
        ["{model}", "-f", "{file}"],
        ["{model}", "--file", "{file}", "-t", "2", "-c", "256"],
        ["{model}", QUESTION, "--temp", "0", "--seed", "-1"],
        ["{model}", QUESTION, "--context", "0", "--kv-type", "F16", "--ffn", "DENSE"],
        ["{model}", QUESTION, "--no-think", "--template-var", "x=1"],
    ],
    ids=" ".join,
)
def test_ways_to_say_it(hotset: Any, demo: Path, tmp_path: Path, answer: str, arguments: list[str]) -> None:
    (tmp_path / "prompt.txt").write_text(QUESTION + "\n")
    given = [argument.format(model=demo, file=tmp_path / "prompt.txt") for argument in arguments]
    assert hotset("run", *given, "-n", "10", "-q") == (0, answer, "")


def test_types_in_any_case(hotset: Any, demo: Path, tmp_path: Path) -> None:
    from hotset.backends.cpu import CpuBackend

    small = hotset("run", demo, QUESTION, "-n", "10", "-q", "--kv-type", "q8_0")
    assert hotset("run", demo, QUESTION, "-n", "10", "-q", "--kv-type", "Q8_0") == small
    for arguments in (
        ["quantize", "--type", "Q4_0", "-o", tmp_path],
        ["bench", "--sweep", "DENSITY", "--trace"],
    ):
        assert "is not one of" not in hotset(arguments[0], demo, *arguments[1:])[2]
    best = CpuBackend.levels()[0]
    assert CpuBackend(1, best.upper()).level == best


def test_every_command_that_reports_does_so_as_json() -> None:
    from hotset.cli.app import _COMMANDS

    assert {
        name for name, command in _COMMANDS.items() if "as_json" in inspect.signature(command).parameters
    } == {*_COMMANDS} - {"run", "chat"}


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_piped_prompt_is_as_one_given(start: Any, demo: Path, answer: str, end: str) -> None:
    process = start("run", demo, "-n", "10", "-q")
    out, err = process.communicate((QUESTION + end).encode(), timeout=60)
    assert (process.returncode, out.decode().replace(os.linesep, "\n"), err) == (0, answer, b"")


def test_the_speed_line_is_on_stderr(hotset: Any, demo: Path, answer: str) -> None:
    code, out, err = hotset("run", demo, QUESTION, "-n", "10")
    assert (code, out) == (0, answer)
    match = SPEED.fullmatch(err)
    assert match and (int(match[1]), int(match[2])) == (37, 10) and match[3]
    code, out, err = hotset("run", demo, QUESTION, "-n", "10", "-v", "-t", "2")
    loaded, speed = err.splitlines()
    assert (code, out) == (0, answer)
    assert str(demo) in loaded and "threads: 2" in loaded and "context: 4096 tokens in f16" in loaded
    assert speed.endswith("computed: all neurons; ended by: limit")


def test_minus_one_and_too_many_tokens_end_with_the_context(hotset: Any, demo: Path) -> None:
    for wanted in ("-1", "100000"):
        code, _, err = hotset("run", demo, "Write a long story.", "-c", "64", "-n", wanted)
        note, speed = err.splitlines()
        assert code == 0
        assert note.startswith("note: the context of 64 tokens is full: the answer is cut")
        prompt, answered = map(int, re.findall(r"(\d+) tokens[,;]", speed))
        assert prompt + answered == 64


def test_context_zero_is_what_the_model_was_trained_for(hotset: Any, demo: Path) -> None:
    assert json.loads(hotset("inspect", demo, "-c", "0", "--json")[1])["memory"]["context"] == 8192


def test_the_system_text_changes_the_answer(hotset: Any, demo: Path, answer: str) -> None:
    code, out, err = hotset("run", demo, QUESTION, "-n", "10", "--system", "You only speak French.")
    assert (code, err.startswith("prompt: ")) == (0, True)
    assert int(err.split()[1]) != 37
    assert out != answer


def test_stop_in_a_chat(start: Any, demo: Path) -> None:
    process = start("chat", demo, "--temp", "0", "--stop", "is located", "-q")
    out, err = process.communicate(QUESTION.encode(), timeout=60)
    assert (process.returncode, out.decode().splitlines(), err) == (0, ["The Eiffel Tower "], b"")


def test_tools_and_variables_reach_the_template(
    hotset: Any, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotset.tokenizer import Tokenizer

    seen: dict[str, Any] = {}
    encode = Tokenizer.encode_chat

    def encode_chat(self: Tokenizer, messages: Any, **variables: Any) -> list[int]:
        seen.update(variables)
        return encode(self, messages, **variables)

    monkeypatch.setattr(Tokenizer, "encode_chat", encode_chat)
    function = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
    (tmp_path / "tools.json").write_text(json.dumps([{"type": "function", "function": function}, function]))
    options = ("--tools", tmp_path / "tools.json", "--think", "--template-var", "reasoning_effort=low")
    code, _, err = hotset("run", demo, "Hi", "-n", "1", *options, "--template-var", 'today={"day": 3}')
    assert code == 0
    assert "note: the model's chat template has no place for tools" in err
    tool = {"type": "function", "function": function}
    assert seen == {
        "tools": [tool, tool],
        "enable_thinking": True,
        "reasoning_effort": "low",
        "today": {"day": 3},
    }


@pytest.mark.parametrize("command", ["bench", "eval", "inspect", "profile", "convert", "quantize", "plan"])
def test_every_command_takes_its_model_as_an_option_too(hotset: Any, command: str) -> None:
    needed = {
        "eval": ["--text", __file__],
        "profile": ["--text", __file__],
        "convert": ["--profile", "x", "-o", "x"],
        "quantize": ["--type", "Q4_0", "-o", "x"],
        "plan": ["--vram", "1GiB", "--machine", "rtx-4090"],
    }.get(command, [])
    code, out, err = hotset(command, "-m", "no-such.gguf", *needed)
    assert (code, out) == (2, "")
    assert "no-such.gguf" in err


def test_python_dash_m(demo: Path) -> None:
    command = [sys.executable, "-m", "hotset"]
    assert subprocess.check_output([*command, "--version"], text=True).startswith("hotset ")
    done = subprocess.run([*command, "bogus"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and "bogus" in done.stderr


@on_posix  # Windows' own shell is asked for its name
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    words = {"COMP_WORDS": "hotset qua", "COMP_CWORD": "1"} if shell == "bash" else {}
    words |= {"_TYPER_COMPLETE_ARGS": "hotset qua", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment = os.environ | words | {"_HOTSET_COMPLETE": f"complete_{shell}"}
    command = [sys.executable, "-m", "hotset"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "quantize" in done.stdout and "bench" not in done.stdout
    shown = subprocess.run(
        [*command, "--show-completion", shell], capture_output=True, text=True, check=False
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "_HOTSET_COMPLETE=complete" in shown.stdout


@on_posix  # needs a pseudo-terminal
def test_progress_while_a_long_prompt_is_read(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("The boats came in every morning. " * 40)
    with Terminal("run", demo, "-f", tmp_path / "long.txt", "-n", "2", "-t", "2") as terminal:
        assert terminal.code() == 0
    shown = terminal.seen.decode()
    assert shown.index("Reading the prompt") < shown.index("answer: 2 tokens")
    with Terminal("run", demo, "-f", tmp_path / "long.txt", "-n", "2", "-t", "2", "-q") as terminal:
        assert terminal.code() == 0
    assert b"Reading the prompt" not in terminal.seen


def test_an_answer_by_a_schema_or_a_grammar(hotset: Any, demo: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    schema, grammar = tmp_path / "schema.json", tmp_path / "rule.gbnf"
    sky = {"properties": {"sky": {"enum": ["blue", "red"]}}, "required": ["sky"]}
    schema.write_text(json.dumps({"type": "object", "additionalProperties": False, **sky}))
    grammar.write_text('root ::= "yes" | "no"')
    arguments = ("run", demo, "Which colour is the sky?", "-q", "-n", "40")
    code, out, _ = hotset(*arguments, "--grammar", grammar)
    assert (code, out in ("yes\n", "no\n")) == (0, True)
    code, out, _ = hotset(*arguments, "--json-schema", schema)
    assert json.loads(out)["sky"] in ("blue", "red")
    schema.write_text('{"type": "object", "not": {}}')
    code, _, err = hotset(*arguments, "--json-schema", schema)
    assert (code, err.count("\n")) == (2, 1)
    assert "constraint cannot be kept" in err
    assert hotset(*arguments, "--json-schema", schema, "--grammar", grammar)[0] == 2
