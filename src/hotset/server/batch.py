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

_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")


def read_lines(path: Path) -> Lines:
    """The lines of a batch. Raises `RequestError` that names a wrong one."""
    found: Lines = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
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
    return found


def resume(path: Path) -> set[str]:
    """The ids that an earlier run has answered; a line that it did not finish is cut off."""
    if not path.exists():
        return set()
    whole = path.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    try:
        done = {json.loads(line)["custom_id"] for line in kept.splitlines()}
    except (ValueError, KeyError, TypeError):
        raise RequestError(f"{path} is there and is no batch's output: name another file (-o)") from None
    if len(kept) < len(whole):
        with path.open("r+b") as file:
            file.truncate(len(kept))
    return done


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
