"""The command line: one file a command. Nothing heavy is imported before a command needs it."""

import signal
import sys
from collections.abc import Sequence

_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    0: done; 1: nobody reads stdout any more; 2: to be corrected by the user, one line says what; 130: Ctrl-C;
    128 + n: ended from outside by signal n (SIGTERM, SIGHUP; on Windows SIGBREAK, also of a closed console).
    """
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks for
            signal.signal(number, _end)
    sys.exit(_exit_code(list(sys.argv[1:] if arguments is None else arguments)))


def _end(signum: int, _: object) -> None:
    """End as by an error, so that nothing half-written stays behind; once, whatever else is sent."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + signum)


def _exit_code(arguments: list[str]) -> int:
    from hotset.cli.streams import abandon_output, prepare_streams

    prepare_streams()
    try:
        from hotset.cli.app import run_command
        from hotset.core.errors import HotsetError

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
        return 1  # the reader (`head`, a pager) has gone
    finally:
        abandon_output()


def _fail(message: str) -> int:
    """One line on stderr, whatever a damaged file has brought into the message."""
    line = " ".join(message.split())
    print("error: " + "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
    return 2
