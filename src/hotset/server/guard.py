"""Who may ask: a key, or without one nobody from another site."""

import hmac
import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from hotset.server.call import send_error
from hotset.server.errors import ApiError

_PUBLIC = ("/health", "/")
_PAGE = "/page/"
"""Files that are the same everywhere."""

_MOST_HEADERS = 1 << 16
"""Bytes; the HTTP library has such a bound only for headers that come in several pieces."""


class Guard:
    """ASGI middleware: lets requests pass that have a key, or where none is asked for, that name this host.

    A page of another site can make a browser ask a server on the same machine, under a name of that site's
    that leads here (DNS rebinding): its requests have that name in their Host.
    """

    def __init__(self, app: ASGIApp, *, keys: Collection[str], host: str, origins: Collection[str]) -> None:
        """`keys` are those that pass; `origins` the sites whose pages may ask; `host` what it is bound to."""
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._hosts = {"localhost", host.lower(), socket.gethostname().lower()}
        self._origins = set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and (error := self._refusal(scope)):
            await send_error(send, scope["path"], error)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _MOST_HEADERS:
            return ApiError(431, f"the headers have more than {_MOST_HEADERS} bytes")
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if scope["path"] in _PUBLIC or scope["path"].startswith(_PAGE):
            return None
        if self._keys:
            return (
                None
                if self._has_key(headers)
                else ApiError(401, "wrong or missing API key", code="invalid_api_key")
            )
        host = headers.get(b"host", "")
        if not self._is_here(host):
            return ApiError(
                403, f"Host {host[:100]!r} is no name of this server: use an address, or --api-key"
            )
        origin = headers.get(b"origin")
        if origin and not self._origins & {origin, "*"} and _place(origin) != host:
            return ApiError(
                403, f"pages of {origin[:100]!r} may not ask this server: start it with --cors-origin"
            )
        return None

    def _has_key(self, headers: dict[bytes, str]) -> bool:
        kind, _, key = headers.get(b"authorization", "").partition(" ")
        given = key.strip() if kind.lower() == "bearer" else headers.get(b"x-api-key", "")
        found = [hmac.compare_digest(given.encode("latin-1"), key) for key in self._keys]
        return any(found)

    def _is_here(self, host: str) -> bool:
        """Whether a Host header is an address or a name that cannot be another site's."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._hosts or name.endswith(".localhost"):
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _place(origin: str) -> str | None:
    """Host and port of an Origin header; None where it is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
