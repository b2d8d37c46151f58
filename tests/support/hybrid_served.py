"""A hybrid server around models that are not real, and what its clients see."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
from support.fake_engine import FakeEngine
from support.scripted_server import ScriptedServer
from support.served import (
    TOOL_TEMPLATE,
    EchoEngine,
    FakeModels,
    Served,
    client_of,
    served,
    user,
)

from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.server.hybrid_routing import HoldPolicy, HybridClients

# The fake engine's tokens have a probability of 0.39, the echo's of 1.
CONFIDENCE = Confidence(threshold=0.5)
LOCAL = b"I am not sure."
PLACEHOLDER = re.compile(r"<[A-Z_]+_[0-9]+>")
PATIENCE = 30.0


@contextmanager
def hybrid_server(
    cloud: ScriptedServer | Cloud,
    *,
    policy: Policy | None = None,
    hold: HoldPolicy = "decision",
    engine: Callable[[], FakeEngine] = lambda: FakeEngine(LOCAL),
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> Iterator[tuple[Served, openai.OpenAI]]:
    """A server of the models "unsure" and "sure", and a client of it."""
    endpoint = cloud if isinstance(cloud, Cloud) else Cloud(cloud.url, "big", "sk-secret-key")
    rules = policy or Policy("redact")
    setup = HybridClients(
        lambda model: HybridClient(
            model, cloud=endpoint, policy=rules, confidence=CONFIDENCE, **changes
        ),
        rules,
        hold=hold,
    )
    models = FakeModels(template=TOOL_TEMPLATE, unsure=engine, sure=EchoEngine)
    with served(models, setup, **(settings or {})) as server, client_of(server) as client:
        yield server, client


def ask(client: openai.OpenAI, text: str = "Hi", model: str = "unsure", **more: Any) -> Any:
    asked = {"model": model, "messages": user(text), "temperature": 0, **more}
    return client.chat.completions.with_raw_response.create(**asked)


def report(answer: Any) -> dict[str, Any]:
    """The field `edgesdk`."""
    found: dict[str, Any] = answer.model_extra["edgesdk"]
    return found


def stream(client: openai.OpenAI, text: str = "Hi", **more: Any) -> tuple[httpx.Headers, list[Any]]:
    raw = ask(client, text, stream=True, **more)
    return raw.headers, list(raw.parse())


def text_of(chunks: list[Any]) -> str:
    """What a client shows that appends whatever comes."""
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


def calls_in(chunks: list[Any]) -> list[tuple[str, str]]:
    """Names and arguments, put together as clients do."""
    found: dict[int, list[str]] = {}
    for one in chunks:
        for call in one.choices[0].delta.tool_calls or []:
            entry = found.setdefault(call.index, ["", ""])
            entry[0] += call.function.name or ""
            entry[1] += call.function.arguments or ""
    return [(name, arguments) for name, arguments in found.values()]
