"""The server's web page: static files, and which of them may be asked for."""

from importlib.resources import files
from typing import NamedTuple

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
)
"""Nothing comes from another host or goes to one, and no script runs but the page's own files."""


class File(NamedTuple):
    """One of the page's files."""

    media_type: str
    body: bytes


def read_files() -> dict[str, File]:
    """All files by their names, such as ``index.html`` and ``vendor/marked.js``."""
    root = files(__name__)
    found: dict[str, File] = {}
    for prefix, folder in (("", root), ("vendor/", root / "vendor")):
        for file in folder.iterdir():
            media_type = _TYPES.get(file.name.rpartition(".")[2])
            if media_type:
                found[prefix + file.name] = File(media_type, file.read_bytes())
    return found
