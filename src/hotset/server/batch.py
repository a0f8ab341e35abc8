"""Answers the lines of a file, as OpenAI's batches have them, through the same app as over HTTP."""

import asyncio
import json
import uuid
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message

from hotset.core.errors import HotsetError, RequestError
from hotset.server.app import Server, make_app
from hotset.server.call import dump
from hotset.server.parallel import for_each

Lines = dict[str, tuple[str, bytes]]
"""Each line's path and body by its ``custom_id``."""

Kept = dict[str, bool]
"""Whether a line was answered without an error, by its ``custom_id``."""

_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
_BEGINNING = b'{"id":"batch_req_'
"""How a line of the output begins (`answer`)."""


def read_lines(path: Path) -> Lines:
    """The lines of a batch. Raises `RequestError` that names a wrong one, and for a file without any."""
    found: Lines = {}
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where} is no JSON: {error}") from None
        id, url = (value.get("custom_id"), value.get("url")) if isinstance(value, dict) else (None, None)
        if not isinstance(id, str) or url not in _PATHS or not isinstance(value.get("body"), dict):
            raise RequestError(
                f"{where}: expected an object with custom_id, url ({', '.join(_PATHS)}) and body"
            )
        if id in found:
            raise RequestError(f"{where}: custom_id {id!r} is there twice")
        found[id] = url, dump(value["body"] | {"stream": False})
    if not found:
        raise RequestError(f"{path} has no requests: expected one a line, a JSON object each")
    return found


def resume(path: Path) -> Kept:
    """What an earlier run has answered; a line that it did not finish is cut off.

    Raises `RequestError` for a file that no batch has written, which stays as it is.
    """
    if not path.exists():
        return {}
    *lines, rest = _read(path).split(b"\n")
    try:
        kept = dict(map(_read_answer, lines))
        if not kept and rest[: len(_BEGINNING)] != _BEGINNING[: len(rest)]:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RequestError(f"{path} is there and is no batch's output: name another file (-o)") from None
    if rest:
        with path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines))
    return kept


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None


def _read_answer(line: bytes) -> tuple[str, bool]:
    """The id of a line of an output, and whether it has no error; raises for other lines."""
    value = json.loads(line)
    response, error = value["response"], value["error"]
    return value["custom_id"], error is None and response["status_code"] == 200


async def answer_lines(
    server: Server,
    lines: Lines,
    out: FileIO,
    parallel: int,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Answer lines, `parallel` at a time, and write each answer when it is there; how many failed."""
    app = make_app(server)
    done = failed = 0

    async def work(item: tuple[str, tuple[str, bytes]]) -> None:
        nonlocal done, failed
        id, (path, body) = item
        line, answered = await answer(app, id, path, body)
        write_line(out, line)
        done += 1
        failed += not answered
        if progress:
            progress(done, len(lines))

    try:
        await for_each(lines.items(), work, parallel)
    finally:
        await server.models.close()
    return failed


def write_line(out: FileIO, line: bytes) -> None:
    """Append an answer. Raises `HotsetError` where that cannot be, as on a full disk."""
    data = line + b"\n"
    try:
        while data:
            data = data[out.write(data) :]
    except OSError as error:
        raise HotsetError(
            f"{out.name} cannot be written: {error.strerror}; with more room, run it again: it goes on there"
        ) from None


async def answer(app: ASGIApp, id: str, path: str, body: bytes) -> tuple[bytes, bool]:
    """The line of the output for one of the input, and whether it is no error."""
    status, answer = await _post(app, path, body)
    response = {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": answer}
    line = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": id, "response": response, "error": None}
    return dump(line), status == 200


async def _post(app: ASGIApp, path: str, body: bytes) -> tuple[int, Any]:
    """Ask an app without a network."""
    asked = False
    status = 0
    parts: list[bytes] = []

    async def receive() -> Message:
        nonlocal asked
        if asked:  # the client never leaves
            await asyncio.get_running_loop().create_future()
        asked = True
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": None,
        "server": None,
    }
    await app(scope, receive, send)
    return status, json.loads(b"".join(parts))
