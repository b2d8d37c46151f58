"""Keeps responses in memory, for `previous_response_id` and `GET /v1/responses/{id}`."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass

from edgesdk.server.api_errors import ApiError
from edgesdk.server.dialects.conversation import Json

_MAX_RESPONSES = 256
_MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class StoredResponse:
    """A response that ended.

    Attributes:
        body: as the client got it.
        items: what it was given, the responses before it included; oldest first.
        size: bytes of both as JSON.
    """

    body: Json
    items: tuple[Json, ...]
    size: int


class ResponseStore:
    """Keeps the responses that were used last. Several threads may call it; nothing of it is
    written to disk.

    Args:
        max_responses, max_bytes: beyond these, those used longest ago are forgotten.
    """

    def __init__(self, max_responses: int = _MAX_RESPONSES, max_bytes: int = _MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, StoredResponse] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def put(self, body: Json, items: list[Json]) -> None:
        """Keep a response."""
        size = len(json.dumps([body, items]))
        with self._lock:
            self._kept[body["id"]] = StoredResponse(body, tuple(items), size)
            self._size += size
            while self._size > self._max_bytes or len(self._kept) > self._max_responses:
                self._size -= self._kept.popitem(last=False)[1].size

    def get(self, key: str) -> StoredResponse:
        """A response by its id.

        Raises:
            ApiError: 404; there is none, or none any more.
        """
        with self._lock:
            if key not in self._kept:
                raise ApiError(404, f"There is no response {key!r}.", code="not_found")
            self._kept.move_to_end(key)
            return self._kept[key]

    def delete(self, key: str) -> None:
        """Forget a response; raises as `get` does."""
        self.get(key)
        with self._lock:
            if key in self._kept:
                self._size -= self._kept.pop(key).size

    def find_item(self, key: str) -> Json | None:
        """An item of a response that is kept, by the item's id."""
        with self._lock:
            kept = list(self._kept.values())
        items = (
            item for stored in reversed(kept) for item in (*stored.body["output"], *stored.items)
        )
        return next((item for item in items if item.get("id") == key), None)
