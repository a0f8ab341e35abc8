"""The web page, and what its heat view shows."""

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from hotset.page import CONTENT_SECURITY_POLICY, read_files
from hotset.serve.heat import heat
from hotset.server.call import Call, Handler, Raw, Reply
from hotset.server.errors import ApiError

if TYPE_CHECKING:
    from hotset.server.app import Server

_FILES = read_files()
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def _file(name: str) -> Raw:
    file = _FILES.get(name)
    if file is None:
        raise ApiError(404, f"the page has no {name[:100]!r}")
    return Raw(file.media_type, file.body, _HEADERS)


async def home(server: "Server", call: Call) -> Reply:
    """The page for browsers; that there is a server for others."""
    accept = dict(call.scope["headers"]).get(b"accept", b"")
    if b"text/html" in accept:
        return _file("index.html")
    return Raw("text/plain; charset=utf-8", b"Hotset is running", {"vary": "accept"})


async def file(server: "Server", call: Call) -> Reply:
    """One of the page's files."""
    return _file(call.scope["path_params"]["name"])


async def heat_of(server: "Server", call: Call) -> Reply:
    """Who fires in a model, summed up since it was loaded; no layers where it is not in memory."""
    call.facts["quiet"] = True  # the page asks three times a second
    asked = parse_qs(call.scope["query_string"].decode("latin-1")).get("model")
    known = server.models.find(asked[0] if asked else None)
    held = server.models.held.get(known.name)
    if held is None:
        return {"model": known.name, "architecture": known.architecture, "layers": []}
    told = await asyncio.to_thread(heat, held.engine.model)
    return {"model": known.name, "architecture": known.architecture, **asdict(told)}


ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/", home),
    ("GET", "/page/{name:path}", file),
    ("GET", "/heat", heat_of),
]
