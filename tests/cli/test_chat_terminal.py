"""`hotset chat` in a pseudo-terminal: pasted lines, history, Ctrl-C, a full context."""

import json
import os
import re
import signal
import stat
import sys
from pathlib import Path

import pytest
from helpers.terminal import CTRL_C, CTRL_D, ENTER, UP, Terminal, paste

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")

PROMPT, SPEED = b"> ", b"computed: all neurons\r\n"


def test_pasted_lines_are_one_message_and_are_remembered_by_the_next_run(demo: Path, tmp_path: Path) -> None:
    options = (demo, "-n", "4", "--temp", "0")
    with Terminal("chat", *options, XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.until(PROMPT)
        terminal.write(paste("first line\n  second line\n"))
        terminal.until(b"second line")
        assert b"prompt: " not in terminal.seen  # not sent before Enter
        terminal.write(ENTER)
        terminal.until(SPEED)
        terminal.until(PROMPT)
        terminal.write(b"/save " + bytes(tmp_path / "talk.json") + ENTER)
        terminal.until(b"written: ")
        terminal.until(PROMPT)
        terminal.write(CTRL_D)
        assert terminal.code() == 0
    assert '"first line\\n  second line"' in (tmp_path / "talk.json").read_text()
    kept = tmp_path / "hotset" / "chat-history"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with Terminal("run", *options, XDG_STATE_HOME=str(tmp_path)) as terminal:  # without a prompt: a chat
        terminal.until(PROMPT)
        terminal.write(UP)
        terminal.until(b"/save")
        terminal.write(UP)
        terminal.until(b"second line")
        terminal.write(ENTER)
        terminal.until(SPEED)
        terminal.until(PROMPT)
        terminal.write(b"/exit" + ENTER)
        assert terminal.code() == 0


def test_ctrl_c_stops_an_answer_and_clears_a_line_but_does_not_leave(demo: Path, tmp_path: Path) -> None:
    with Terminal("chat", demo, "--temp", "0", XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.until(PROMPT)
        terminal.write(b"Write a very long story about the sea." + ENTER)
        terminal.until(b"\x1b[?2004l")  # the line is done
        terminal.until(b" ")
        terminal.write(CTRL_C)
        shown = terminal.until(SPEED)
        tokens = re.search(rb"answer: (\d+) token", shown)
        assert tokens and 0 < int(tokens[1]) < 1000
        terminal.until(PROMPT)
        terminal.write(b"never sent" + CTRL_C)
        terminal.until(b"Ctrl-D leaves")
        terminal.until(PROMPT)
        terminal.write(b"Hi" + ENTER)
        terminal.until(b"Hello")
        terminal.write(CTRL_C)
        terminal.until(SPEED)
        terminal.until(PROMPT)
        terminal.write(CTRL_D)
        assert terminal.code() == 0
    assert b"Traceback" not in terminal.seen


def test_the_bar_of_a_long_prompt_is_gone_when_the_answer_begins(demo: Path, tmp_path: Path) -> None:
    with Terminal("chat", demo, "-n", "8", "--temp", "0", XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.until(PROMPT)
        for message in (
            b"Hello there. " * 100,
            b"What is the capital of France?",
        ):  # few of the second's are new
            terminal.write(message + ENTER)
            shown = terminal.until(SPEED)
            terminal.until(PROMPT)
        terminal.write(b"/save " + bytes(tmp_path / "talk.json") + ENTER)
        terminal.until(b"written: ")
        terminal.until(PROMPT)
        terminal.write(CTRL_D)
        assert terminal.code() == 0
    answer = json.loads((tmp_path / "talk.json").read_text())[-1]["content"]
    assert len(answer) > 8
    assert answer.strip().replace("\n", "\r\n").encode() in shown


def test_a_full_context_in_a_terminal(demo: Path, tmp_path: Path) -> None:
    options = ("-n", "16", "-c", "160", "--temp", "0", "-q")
    with Terminal("chat", demo, *options, XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.until(PROMPT)
        for i in range(8):
            terminal.write(f"Tell me about the number {i}.".encode() + ENTER)
            terminal.until(b"\x1b[?2004l")
            terminal.until(PROMPT)
        terminal.write(b"word " * 200 + ENTER)
        terminal.until(b"error: the prompt has")
        terminal.until(b"room for 160")
        terminal.until(PROMPT)
        terminal.write(CTRL_D)
        assert terminal.code() == 0
    assert terminal.seen.count(b"the context of 160 tokens is full") == 1


@pytest.mark.parametrize("state", ["/dev/null/state", "/proc/state"])
def test_without_a_place_for_history_a_chat_goes_on(demo: Path, state: str) -> None:
    with Terminal("chat", demo, "-n", "1", XDG_STATE_HOME=state) as terminal:
        terminal.until(PROMPT)
        terminal.write(b"Hi" + ENTER)
        terminal.until(SPEED)
        terminal.until(PROMPT)
        terminal.write(UP + ENTER)  # remembered for this run
        terminal.until(SPEED)
        terminal.until(PROMPT)
        terminal.write(CTRL_D)
        assert terminal.code() == 0


def test_alt_enter_begins_a_line_and_tab_completes(demo: Path, tmp_path: Path) -> None:
    with Terminal("chat", demo, "-n", "1", XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.until(PROMPT)
        terminal.write(b"one\x1b\rtwo" + ENTER)
        terminal.until(SPEED)
        terminal.until(PROMPT)
        terminal.write(b"/reg\t" + ENTER)
        terminal.until(SPEED)
        terminal.until(PROMPT)
        terminal.write(CTRL_D)
        assert terminal.code() == 0
    assert "+one\n+two\n" in (tmp_path / "hotset" / "chat-history").read_text()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_goes_to_stderr_is_seen_before_the_next_prompt(
    demo: Path, tmp_path: Path, unbuffered: str
) -> None:
    with Terminal("chat", demo, XDG_STATE_HOME=str(tmp_path), PYTHONUNBUFFERED=unbuffered) as terminal:
        terminal.until(PROMPT)
        terminal.write(b"/regenerate" + ENTER)
        assert b"error: there is no answer yet" in terminal.until(b"?2004h")
        terminal.write(CTRL_D)
        assert terminal.code() == 0


@pytest.mark.parametrize("busy", [False, True])
def test_a_terminal_that_is_gone_ends_the_chat(demo: Path, tmp_path: Path, busy: bool) -> None:
    with Terminal("chat", demo, "-n", "2000", XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.until(PROMPT)
        if busy:
            terminal.write(b"Write a very long story about the sea." + ENTER)
            terminal.until(b"?2004l")
        terminal.hang_up()
        assert terminal.code() in (0, 2, 129)


def test_a_chat_that_is_ended_from_outside_leaves_the_terminal_as_it_was(demo: Path, tmp_path: Path) -> None:
    with Terminal("chat", demo, XDG_STATE_HOME=str(tmp_path)) as terminal:
        before = terminal.mode()
        terminal.until(PROMPT)
        assert terminal.mode() != before
        os.kill(terminal.pid, signal.SIGTERM)
        assert terminal.code() == 143
        assert terminal.mode() == before
    assert terminal.seen.rindex(b"\x1b[?2004l") > terminal.seen.rindex(b"\x1b[?2004h")
