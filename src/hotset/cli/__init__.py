"""The command line: one file a command. Nothing heavy is imported before a command needs it."""

import os
import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    0: done; 1: nobody reads stdout any more; 2: something the user can mend, one line says what; 130: Ctrl-C;
    143: ended from outside (SIGTERM).
    """
    signal.signal(signal.SIGTERM, _end)
    sys.exit(_exit_code(list(sys.argv[1:] if arguments is None else arguments)))


def _end(signum: int, _: object) -> None:
    """End as by an error, so that nothing half-written stays behind."""
    sys.exit(128 + signum)


def _exit_code(arguments: list[str]) -> int:
    try:
        from hotset.cli.app import run_command
        from hotset.core.errors import HotsetError

        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(
                    errors="replace"
                )  # a terminal that cannot show a character shows something else
        try:
            code = run_command(arguments)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            raise
        except (HotsetError, OSError, MemoryError) as error:
            return _fail(str(error) or "out of memory")
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (`head`, a pager) has gone. Python flushes stdout once more on exit: let it go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _fail(message: str) -> int:
    """One line on stderr, whatever a damaged file has brought into the message."""
    line = " ".join(message.split())
    print("error: " + "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
    return 2
