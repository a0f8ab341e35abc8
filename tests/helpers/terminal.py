"""A pseudo-terminal with a command in it, for what only a user at a keyboard sees."""

import os
import select
import signal
import sys
import time
from types import TracebackType
from typing import Any

COMMAND = [sys.executable, "-c", "from hotset.cli import main; main()"]
CTRL_C, CTRL_D, UP, ENTER = b"\x03", b"\x04", b"\x1b[A", b"\r"


def paste(text: str) -> bytes:
    """What a terminal sends for pasted text, where the program asked for marks."""
    return b"\x1b[200~" + text.replace("\n", "\r").encode() + b"\x1b[201~"


class Terminal:
    """Runs `hotset` with `arguments`; a context manager."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        import pty

        self.seen = b""
        """All that was shown."""
        self._read = 0
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ.update({"TERM": "xterm", "LC_ALL": "C.UTF-8", "COLUMNS": "80"} | environment)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.execv(COMMAND[0], [*COMMAND, *map(str, arguments)])

    def write(self, data: bytes) -> None:
        """Type."""
        os.write(self._fd, data)

    def until(self, mark: bytes, seconds: float = 300) -> bytes:
        """What is shown from here on, up to and with `mark`."""
        end = time.monotonic() + seconds
        while (at := self.seen.find(mark, self._read)) < 0:
            assert time.monotonic() < end, f"no {mark!r} after {self.seen[self._read :]!r}"
            self._take()
        start, self._read = self._read, at + len(mark)
        return self.seen[start : self._read]

    def mode(self) -> list[Any]:
        """How the terminal treats what is typed and shown: echo, lines, signals."""
        import termios

        return termios.tcgetattr(self._fd)[:4]

    def hang_up(self) -> None:
        """Close the terminal, as by closing its window."""
        os.close(self._fd)
        self._fd = -1

    def code(self, seconds: float = 300) -> int:
        """Wait for the command; its exit code."""
        end = time.monotonic() + seconds
        while (ended := os.waitpid(self.pid, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < end, f"still running after {self.seen[-1000:]!r}"
            self._take()
        while self._fd >= 0 and self._take():
            pass
        self.pid = 0
        return os.waitstatus_to_exitcode(ended[1])

    def _take(self) -> bool:
        """Read what is shown by now; whether there may be more."""
        if self._fd < 0 or not select.select([self._fd], [], [], 0.1)[0]:
            time.sleep(0.01)
            return False
        try:
            piece = os.read(self._fd, 1 << 16)
        except OSError:  # the other side is closed
            return False
        self.seen += piece
        return bool(piece)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if self._fd >= 0:
            os.close(self._fd)
