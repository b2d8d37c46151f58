"""A real HTTP server on loopback whose files, versions and accidents a test scripts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

CHUNK = 64 * 1024


@dataclass
class Served:
    """One file, and how the server behaves when it is asked for it."""

    body: bytes
    etag: str | None = '"v1"'
    content_type: str = "application/octet-stream"
    ranges: bool = True
    """Whether Range is honoured at all."""
    heeds_if_range: bool = True
    """Whether If-Range is compared; some servers ignore it."""
    says_length: bool = True
    cuts: list[int] = field(default_factory=list)
    """For each of the first answers: cut the connection after so many bytes."""
    stall: tuple[int, threading.Event] | None = None
    """After so many bytes of an answer, wait for the event."""
    location: str | None = None
    """Redirect there instead."""
    status: int = 200


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    path: str
    range: str | None
    authorization: str | None


class RangeServer(ThreadingHTTPServer):
    """Serves `files` by path; `requests` is what was asked so far."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.requests: list[Request] = []

    def url(self, path: str) -> str:
        """The address of a path."""
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def asked(self, path: str) -> list[Request]:
        """The requests for one path."""
        return [request for request in self.requests if request.path == path]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news here."""


@contextmanager
def serving() -> Iterator[RangeServer]:
    """A server that runs while the block does."""
    with RangeServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        asked = self.headers.get("Range")
        self.server.requests.append(Request(path, asked, self.headers.get("Authorization")))
        served = self.server.files.get(path)
        if served is None or served.status != 200:
            self.send_error(404 if served is None else served.status)
            return
        if served.location is not None:
            self.send_response(302)
            self.send_header("Location", served.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._answer(served, self._start(served, asked))

    def _start(self, served: Served, asked: str | None) -> int:
        condition = self.headers.get("If-Range")
        same = condition is None or condition == served.etag or not served.heeds_if_range
        if asked is None or not served.ranges or not same:
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def _answer(self, served: Served, start: int) -> None:
        size = len(served.body)
        if start >= size > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", served.content_type)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if served.etag is not None:
            self.send_header("ETag", served.etag)
        if served.says_length:
            self.send_header("Content-Length", str(size - start))
        self.end_headers()
        limit = served.cuts.pop(0) if served.cuts else size
        pause, event = served.stall or (size + 1, threading.Event())
        sent = 0
        while sent < min(limit, size - start):
            if sent >= pause:
                event.wait()
            piece = served.body[start + sent : start + min(sent + CHUNK, limit)]
            self.wfile.write(piece)
            sent += len(piece)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
