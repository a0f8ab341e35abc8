"""Standard streams that are closed, full or left by their reader."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from helpers.random_gguf import random_model, write_plain

from hotset.cli import streams
from hotset.cli.console import table
from hotset.core.errors import HotsetError

COMMAND = f'{sys.executable} -c "from hotset.cli import main; main()"'
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def shell(line):
    if sys.platform == "win32":
        pytest.skip("needs a POSIX shell")
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


@needs_full
@pytest.mark.parametrize("arguments", ["--version", "inspect", "run -p Hello -n 3", "chat -n 3"])
def test_a_full_standard_output_is_one_line(demo, arguments):
    code, _, err = shell(f"echo hello | {COMMAND} {arguments} >/dev/full")
    assert (code, err) == (2, "error: standard output cannot be written: No space left on device\n")


@needs_full
@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-"])
def test_standard_error_that_takes_nothing_changes_nothing(demo, tmp_path, stderr):
    code, out, err = shell(f"{COMMAND} inspect --json {stderr}")
    assert (code, err) == (0, "")
    assert json.loads(out)["architecture"] == "llama"
    code, out, err = shell(f"{COMMAND} inspect {tmp_path}/none.gguf {stderr}")
    assert (code, out, err) == (2, "", "")


@pytest.mark.parametrize("streams", [">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams_stop_no_work(demo, tmp_path, streams):
    model, out = write_plain(tmp_path / "m.gguf", random_model("llama")), tmp_path / "o.gguf"
    for arguments in ("run -q -p Hello -n 3", f"quantize {model} --type q4_0 -o {out}"):
        assert shell(f"{COMMAND} {arguments} {streams}") == (0, "", "")
    assert gguf.GGUFReader(out).tensors  # and nothing that was printed is in it


def test_closed_standard_input(demo):
    assert shell(f"{COMMAND} chat <&-") == (0, "", "")
    code, out, err = shell(f"{COMMAND} run <&-")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "prompt" in err


def test_a_reader_that_leaves(demo):
    code, _, err = shell(f'{{ {COMMAND} run -p "Write a long story." -n 40; echo $? >&2; }} | head -c 1')
    assert (code, err) == (0, "1\n")


def test_a_console_of_windows_keeps_its_own_streams(monkeypatch):
    """Python writes there in UTF-16; bytes of UTF-8 would be shown in the console's code page."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "isatty", lambda number: number == 1)
    with open(os.devnull, "w") as own, open(os.devnull, "w") as other:  # noqa: PTH123
        for name, stream in (("stdout", own), ("stderr", other)):
            monkeypatch.setattr(sys, name, stream)
            monkeypatch.setattr(sys, f"__{name}__", stream)
        streams.prepare_streams()
        assert sys.stdout is own and sys.stdout.errors == "replace"
        assert sys.stderr is not other


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="needs a file that takes no single byte")
def test_windows_calls_a_reader_that_has_gone_an_invalid_argument(monkeypatch):
    output = streams._Output(os.eventfd(0), "w")
    with pytest.raises(HotsetError, match="Invalid argument"):
        output.write(b"x")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(BrokenPipeError):
        output.write(b"x")


def test_tables_show_text_as_it_is(capsys):
    rows = ("a[b].gguf", "[/x]", ":smile: [bold]"), ("[red]c[/red]", "\\[d]", "1")
    for header in (None, ("[name]", ":x:", "count")):
        table(rows, header)
        shown = capsys.readouterr().out
        assert all(cell in shown for row in (*rows, header or ()) for cell in row)
