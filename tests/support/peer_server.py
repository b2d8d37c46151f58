"""A running server as the scenarios of peers' own tests use it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx
import openai

_SECONDS = 300.0


@dataclass(frozen=True)
class PeerServer:
    """A running server, and the key that it wants."""

    url: str
    key: str = "unused"

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=_SECONDS, **more)

    def post(self, path: str, body: dict[str, Any], **more: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=_SECONDS, **more)

    def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a stream, which must be a whole one."""
        text = self.post(path, {**body, "stream": True}).text
        *events, done = [line for line in text.splitlines() if line.startswith("data: ")]
        assert done == "data: [DONE]"
        return [json.loads(event[6:]) for event in events]

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=_SECONDS
        )
