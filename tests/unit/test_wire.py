"""Server-sent events and chunks, cut anywhere and damaged anyhow."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.hybrid.cloud.wire import (
    MAX_EVENT_BYTES,
    ChunkDelta,
    InBandError,
    InvalidChunk,
    parse_chunk,
    read_events,
)

LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


def events_of(*pieces: bytes) -> list[str]:
    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def read() -> list[str]:
        return [event async for event in read_events(body())]

    return anyio.run(read)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    ends = [0, *sorted(place for place in places if place < len(data)), len(data)]
    return [data[a:b] for a, b in pairwise(ends) if a < b]


@given(
    st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 300), max_size=10),
)
def test_events_come_out_whole(events: list[list[str]], end: str, cuts: list[int]) -> None:
    written = "".join(
        f": comment{end}id: 7{end}" + "".join(f"data: {line}{end}" for line in lines) + end
        for lines in events
    ).encode()
    # What is not finished is no event.
    written += b"data: unfinished"
    whole = ["\n".join(lines) for lines in events]
    assert events_of(*cut(written, cuts)) == [event for event in whole if event]


def test_comments_are_no_events() -> None:
    assert events_of(b"id: 1\n\n", b": wait\n\n", b"data: x\n\n", b": wait\n\n") == ["x"]


@given(st.binary(max_size=300))
def test_any_bytes_give_events_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidChunk):
        assert all(isinstance(event, str) for event in events_of(data))


def test_bytes_that_are_no_utf8_are_refused() -> None:
    with pytest.raises(InvalidChunk, match="UTF-8"):
        events_of(b'data: {"content": "\xff"}\n\n')
    # A character may be cut.
    assert events_of(b"data: \xe4\xbe", b"\x8b\n\n") == ["例"]


@pytest.mark.parametrize("piece", [b"x" * 2**20, b"data: " + b"x" * 2**20 + b"\n"])
def test_an_endless_event_is_given_up(piece: bytes) -> None:
    count = MAX_EVENT_BYTES // 2**20
    assert events_of(*(count - 1) * [piece]) == []
    with pytest.raises(InvalidChunk, match="without an end"):
        events_of(*(count + 1) * [piece])
    # The limit is for one event, not for the stream.
    assert len(events_of(*2 * count * [b"data: " + b"x" * 2**19 + b"\n\n"])) == 2 * count


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "usage", "tool_calls", "index", "error"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_a_chunk_or_an_invalid_one(value: object) -> None:
    with contextlib.suppress(InvalidChunk, InBandError):
        assert isinstance(parse_chunk(json.dumps(value)), ChunkDelta)


def test_deep_json_is_no_chunk() -> None:
    with pytest.raises(InvalidChunk, match="where JSON should be"):
        parse_chunk("[" * 100_000)
