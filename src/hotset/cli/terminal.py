"""What a user types in `hotset chat`: lines edited in a terminal, or read from a pipe.

A terminal marks pasted text (bracketed paste), so that its lines are one message. Alt-Enter begins a new
line, and so does Enter within triple quotes. What was typed is remembered across runs.
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hotset.core.errors import RequestError

if TYPE_CHECKING:
    from prompt_toolkit.history import History

QUOTES = '"""'

Read = Callable[[str], str]
"""Shows a prompt and gives what was typed; EOFError at the end, KeyboardInterrupt for Ctrl-C."""


def interactive() -> bool:
    """Whether a user sits at both ends."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def reader(commands: Sequence[str]) -> Read:
    """How messages are read here; in a terminal, Tab completes `commands`."""
    return _terminal_reader(commands) if interactive() else _read_line


def read_message(read: Read) -> str:
    """The next message: a line, several that were pasted, or those between triple quotes, without them."""
    text = read("> ").rstrip().lstrip("\r\n")
    if "\n" not in text:
        text = text.lstrip()
    command, opening, rest = text.partition(QUOTES)
    if opening and (not command or (command.startswith("/") and command.endswith(" "))):
        while QUOTES not in rest:
            rest += "\n" + read("... ")
        rest = rest.rstrip()
        # Code may begin with such quotes itself: then they are the message's.
        if rest.endswith(QUOTES) and rest.count(QUOTES) == 1:
            return command + rest.removesuffix(QUOTES).strip("\n")
        return command + opening + rest
    return text


def history_path() -> Path:
    """Where typed lines are kept: ``$XDG_STATE_HOME``, by default ``~/.local/state``."""
    base = os.environ.get("XDG_STATE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path("~/.local/state").expanduser()
    return root / "hotset" / "chat-history"


def _read_line(prompt: str) -> str:
    if sys.stdin is None:
        raise EOFError
    try:
        return input()
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not UTF-8 text: byte {error.start} cannot be read") from None


def _terminal_reader(commands: Sequence[str]) -> Read:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    # Asked where its cursor is, a terminal that does not know would earn the user a warning.
    os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        history=_history(),
        key_bindings=keys,
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        enable_suspend=True,
    )

    def read(prompt: str) -> str:
        put_back = _mode_keeper()
        try:
            # In colour, for the last space of a prompt without one is not written but stepped over.
            return session.prompt([("ansicyan", prompt)])
        except SystemExit:  # of a signal: the editor has not put the terminal back
            session.output.disable_bracketed_paste()
            session.output.flush()
            put_back()
            raise

    return read


def _mode_keeper() -> Callable[[], None]:
    """What puts the terminal back into the mode that it is in now; on Windows, nothing."""
    if sys.platform == "win32":
        return lambda: None
    import termios

    descriptor = sys.stdin.fileno()
    mode = termios.tcgetattr(descriptor)

    def put_back() -> None:
        with suppress(termios.error):  # a terminal that has gone
            termios.tcsetattr(descriptor, termios.TCSANOW, mode)

    return put_back


def _history() -> "History":
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Kept(FileHistory):
        """A file that only its owner reads; where it cannot be written, lines are remembered for this run."""

        def load_history_strings(self) -> Iterable[str]:
            """The lines kept, the newest first."""
            with suppress(OSError):
                yield from super().load_history_strings()

        def store_string(self, string: str) -> None:
            """Append one line to the file."""
            with suppress(OSError):
                super().store_string(string)

    with suppress(OSError, RuntimeError):  # RuntimeError: nobody knows where the home is
        path = history_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return Kept(str(path))
    return InMemoryHistory()
