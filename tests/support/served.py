"""A server in a thread, on a loopback port, with models that are not real."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import openai
from support.fake_engine import END, OPEN, TEMPLATE, VOCAB, FakeEngine, fake_model

from edgesdk.engines.base import Logits
from edgesdk.model import Model
from edgesdk.server.hybrid_routing import HybridClients
from edgesdk.server.model_source import ModelInfo
from edgesdk.server.service import Service
from edgesdk.server.serving import DrainingServer, listen
from edgesdk.server.settings import ServerSettings

_PATIENCE = 20.0


class EchoEngine(FakeEngine):
    """Answers with the user's last message, so that a mixed-up answer shows."""

    def logits(self, tokens: list[int]) -> Logits:
        if OPEN not in tokens:
            # A part of a long prompt: nobody looks at these.
            return np.zeros((1, VOCAB), np.float32)
        at = len(tokens) - 1 - tokens[::-1].index(OPEN)
        answer = bytes(tokens[:at]).rpartition(b"user: ")[2].removesuffix(b"\n")
        since = len(tokens) - 1 - at
        row = np.full((1, VOCAB), -50, np.float32)
        row[0, answer[since] if since < len(answer) else END] = 50
        return row


# As Qwen's template has them; the user's messages stand as `EchoEngine` looks for them.
TOOL_TEMPLATE = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}\x02{{ m.content }}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}\x03"
    "{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}\x02{% endif %}"
)


class FakeModels:
    """Implements `ModelSource` over factories of engines; `loads` counts.

    Each has files of `size` bytes, and needs ten times as much memory.
    """

    def __init__(
        self, size: int = 100, template: str = TEMPLATE, **engines: Callable[[], FakeEngine]
    ) -> None:
        self._engines = engines
        self._size = size
        self._template = template
        self.loads: list[str] = []

    def list_models(self) -> list[ModelInfo]:
        return [ModelInfo(name, self._size, 1_700_000_000) for name in sorted(self._engines)]

    def find(self, name: str) -> ModelInfo | None:
        return next(
            (model_info for model_info in self.list_models() if model_info.name == name), None
        )

    def memory(self, name: str) -> int:
        return 10 * self._size

    def load(self, name: str) -> Model:
        self.loads.append(name)
        return fake_model(self._engines[name](), template=self._template)


class Gate:
    """Holds engines up: `before_extend` waits while the gate is shut."""

    def __init__(self, *, shut: bool = False) -> None:
        self._open = threading.Event()
        if not shut:
            self._open.set()
        self.open = self._open.set
        self.shut = self._open.clear

    def __call__(self, sequence: object) -> None:
        assert self._open.wait(_PATIENCE), "nobody opened the gate"


class Served:
    """A running server."""

    def __init__(self, server: DrainingServer, service: Service, url: str) -> None:
        self.server = server
        self.service = service
        self.url = url

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=_PATIENCE, **arguments)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=_PATIENCE, **arguments)

    def state(self) -> dict[str, Any]:
        return dict(self.get("/health").json())

    def until(self, **wanted: Any) -> None:
        """Wait until `/health` says so."""
        wait_for(lambda: self.state().items() >= wanted.items(), lambda: self.state())


@contextmanager
def served(source: Any, hybrid: HybridClients | None = None, **settings: Any) -> Iterator[Served]:
    """Serve while the block runs."""
    chosen = ServerSettings(**{"port": 0, "grace": 0.0, **settings})
    started = threading.Event()
    found: list[str] = []

    def on_start(url: str) -> None:
        found.append(url)
        started.set()

    def run() -> None:
        async def main() -> None:
            service = Service(source, chosen)
            with listen(chosen.host, chosen.port) as listener:
                server = DrainingServer(service, listener, on_start, hybrid)
                running.append(Served(server, service, ""))
                await server.serve(sockets=[listener])

        asyncio.run(main())

    running: list[Served] = []
    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(_PATIENCE), "the server did not start"
    running[0].url = found[0]
    try:
        yield running[0]
    finally:
        running[0].server.should_exit = True
        thread.join(_PATIENCE)
        assert not thread.is_alive(), "the server did not end"


def wait_for(condition: Callable[[], bool], describe: Callable[[], object] = lambda: "") -> None:
    """Wait for something that another thread brings about."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, f"it did not come about: {describe()}"
        time.sleep(0.01)


def client_of(server: Served, key: str = "unused") -> openai.OpenAI:
    """The official client."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=20)


def user(text: str) -> list[Any]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]
