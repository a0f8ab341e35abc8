"""Text files that commands read."""

from pathlib import Path

from hotset.core.errors import RequestError


def read_text(path: Path) -> str:
    """A UTF-8 file's text, without the mark that some programs begin it with, or `RequestError`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text: byte {error.start} cannot be read") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
