"""A Hugging Face hub on 127.0.0.1: lists one repository, answers HEAD, and serves ranges of its files."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def commit_of(revision: str) -> str:
    """The commit that a branch or a tag stands for."""
    return COMMIT if revision in ("main", COMMIT) else hashlib.sha1(revision.encode()).hexdigest()


@dataclass
class FakeHub:
    """What the server has and how it misbehaves; ``requests`` collects (method, path, range)."""

    endpoint: str
    repo: str
    files: Mapping[str, bytes]
    revisions: Mapping[str, Mapping[str, bytes]]
    """Other revisions' files; `COMMIT` is main."""
    cut_after: int | None = None
    """Drop the connection after so many bytes of each body."""
    stall_after: int | None = None
    """Send so many bytes of each body, set `stalled` and wait until `release`."""
    stalled: threading.Event = field(default_factory=threading.Event)
    _released: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def release(self) -> None:
        """Stall no more."""
        self.stall_after = None
        self._released.set()

    def known(self) -> dict[str, Mapping[str, bytes]]:
        """Files by revision."""
        return {"main": self.files, COMMIT: self.files, **self.revisions}

    def downloads(self) -> list[tuple[str, str | None]]:
        """Files got, with the range asked for."""
        return [
            (path.rsplit("/", 1)[1], span)
            for method, path, span in self.requests
            if "/resolve/" in path and method == "GET"
        ]


@contextmanager
def fake_hub(
    repo: str,
    files: Mapping[str, bytes],
    *,
    revisions: Mapping[str, Mapping[str, bytes]] | None = None,
    gated: bool = False,
) -> Iterator[FakeHub]:
    """Serve `files` as `repo`, and `revisions` by their names, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = self.path.split("?")[0]
            hub.requests.append((self.command, path, self.headers.get("Range")))
            prefix = f"/{repo}/resolve/"
            if path.startswith(f"/api/models/{repo}"):
                self.list_files(path)
                return
            revision, name = map(unquote, path.removeprefix(prefix).partition("/")[::2])
            if not path.startswith(prefix):
                self.refuse(404, "RepoNotFound")
            elif gated:
                self.refuse(403, "GatedRepo")
            elif revision not in hub.known():
                self.refuse(404, "RevisionNotFound")
            elif name not in hub.known()[revision]:
                self.refuse(404, "EntryNotFound")
            else:
                self.send(hub.known()[revision][name], body=body, commit=commit_of(revision))

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def list_files(self, path: str) -> None:
            revision = unquote(path.partition("/revision/")[2]) or "main"
            if revision not in hub.known():
                self.refuse(404, "RevisionNotFound")
                return
            files = hub.known()[revision]
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in files.items()
            ]
            siblings = {
                "id": repo,
                "sha": commit_of(revision),
                "siblings": [{"rfilename": name} for name in files],
            }
            text = json.dumps(entries if "/tree/" in path else siblings).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def send(self, data: bytes, *, body: bool, commit: str) -> None:
            span = self.headers.get("Range")
            start = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
            self.send_response(206 if span else 200)
            if span:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if not body:
                return
            limit = hub.cut_after or hub.stall_after
            self.wfile.write(data[start:][:limit])
            if hub.stall_after:
                hub.stalled.set()
                hub._released.wait(60)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}", repo, files, revisions or {})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
