from __future__ import annotations

from typing import Any

import pytest

from edgesdk.server.api_errors import ApiError
from edgesdk.server.dialects.response_store import ResponseStore


def _body(key: str, text: str = "") -> dict[str, Any]:
    return {"id": key, "output": [{"id": f"msg_{key}", "text": text}]}


def test_the_one_used_longest_ago_makes_room() -> None:
    store = ResponseStore(max_responses=2)
    store.put(_body("a"), [])
    store.put(_body("b"), [])
    store.get("a")
    store.put(_body("c"), [])
    assert store.get("a").body == _body("a")
    with pytest.raises(ApiError, match="'b'"):
        store.get("b")
    assert store.find_item("msg_b") is None


def test_the_bytes_are_bounded_and_given_back() -> None:
    store = ResponseStore(max_bytes=1000)
    store.put(_body("a", "x" * 600), [])
    store.delete("a")
    store.put(_body("b", "x" * 600), [])
    assert store.find_item("msg_b") is not None
    store.put(_body("c"), [{"type": "message", "content": "y" * 600}])
    with pytest.raises(ApiError):
        store.get("b")
    assert store.get("c").items[0]["content"] == "y" * 600
