"""A server on a real socket that answers each connection by a script of bytes and misbehaviour."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Wait:
    """Do nothing for so long, or until the server closes."""

    seconds: float


@dataclass(frozen=True)
class Reset:
    """Cut the connection hard (TCP RST)."""


Step = bytes | Wait | Reset
Script = list[Step]


def event(data: Any) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}\n\n".encode()


def chunk(text: str | None = None, *, finish: str | None = None, **delta: Any) -> bytes:
    """A chunk of a chat completion."""
    content = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": {**content, **delta}, "finish_reason": finish}
    return event({"id": "c", "object": "chat.completion.chunk", "choices": [choice]})


def usage(prompt: int, completion: int) -> bytes:
    """The last chunk before the end, where usage was asked for."""
    counted = {"prompt_tokens": prompt, "completion_tokens": completion}
    return event({"choices": [], "usage": counted})


def answer(*texts: str) -> Script:
    """A whole, good answer."""
    pieces = [chunk(text) for text in texts]
    counts = usage(3, len(texts))
    return [HEAD, *pieces, chunk(finish="stop"), counts, event("[DONE]")]


def status(line: str, body: Any = None, **headers: str) -> Script:
    """An answer that is no stream."""
    data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    fields = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return [f"HTTP/1.1 {line}\r\n{lines}\r\n".encode() + data]


@dataclass
class ScriptedServer:
    """Serves script after script, the last one for ever. Use it in a `with` block.

    Attributes:
        requests: every byte that came, by connection.
    """

    scripts: Iterable[Script]
    tls: ssl.SSLContext | None = None
    requests: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._scripts = list(self.scripts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}/v1"

    def answer_to(self, request: bytes) -> Script:
        """The script for where there is none."""
        return []

    def bodies(self) -> list[Any]:
        """The JSON of each request."""
        return [json.loads(data.partition(b"\r\n\r\n")[2]) for data in self.requests]

    def __enter__(self) -> ScriptedServer:
        self._start(self._accept)
        return self

    def __exit__(self, *raised: object) -> None:
        self._closing.set()
        # Closing alone does not wake an accept.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=10)
            assert not thread.is_alive()

    def _start(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        number = 0
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            script = self._scripts[min(number, len(self._scripts) - 1)]
            number += 1
            self._start(self._serve, connection, script)

    def _serve(self, plain: socket.socket, script: Script) -> None:
        with plain:
            try:
                connection = plain if self.tls is None else self.tls.wrap_socket(plain, True)
                with connection:
                    self.requests.append(_request(connection))
                    for step in script or self.answer_to(self.requests[-1]):
                        if isinstance(step, Wait):
                            self._closing.wait(step.seconds)
                        elif isinstance(step, Reset):
                            linger = struct.pack("ii", 1, 0)
                            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                        else:
                            connection.sendall(step)
            except OSError:
                return


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _received(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length")
    ]
    while len(body) < (lengths or [0])[0]:
        more = _received(connection)
        data, body = data + more, body + more
    return data


def _received(connection: socket.socket) -> bytes:
    more = connection.recv(65_536)
    if not more:
        raise ConnectionError("the client left before its request was whole")
    return more
