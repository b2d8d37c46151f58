"""Server-sent events, cut anywhere."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.hybrid.cloud.wire import (
    MAX_EVENT_BYTES,
    ChunkDelta,
    EventReader,
    EventTooLong,
    InvalidChunk,
    ToolCallAssembly,
    ToolCallDelta,
    WireToolCall,
    parse_chunk,
)

LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


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
    reader, found, at = EventReader(), [], 0
    for cut in [*sorted(cuts), len(written)]:
        found += reader.feed(written[at:cut])
        at = max(at, cut)
    assert found == ["\n".join(lines) for lines in events]


@given(st.binary(max_size=300))
def test_any_bytes_give_events_or_no_text(data: bytes) -> None:
    with contextlib.suppress(UnicodeDecodeError):
        assert all(isinstance(event, str) for event in EventReader().feed(data))


@pytest.mark.parametrize("piece", [b"x" * 2**20, b"data: " + b"x" * 2**20 + b"\n"])
def test_an_endless_event_is_given_up(piece: bytes) -> None:
    reader = EventReader()
    for _ in range(MAX_EVENT_BYTES // 2**20 - 1):
        assert list(reader.feed(piece)) == []
    with pytest.raises(EventTooLong):
        list(reader.feed(2 * piece))


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
def test_any_json_is_a_chunk_or_a_bad_one(value: object) -> None:
    with contextlib.suppress(InvalidChunk):
        assert isinstance(parse_chunk(json.dumps(value)), ChunkDelta)


def assembled(pieces: list[ToolCallDelta]) -> tuple[WireToolCall, ...]:
    assembly = ToolCallAssembly()
    for piece in pieces:
        assembly.add(piece)
    return assembly.whole()


@pytest.mark.parametrize(
    "pieces",
    [
        [ToolCallDelta(0, "a", "", "{}")],
        [ToolCallDelta(0, "a", "f", "{"), ToolCallDelta(0, "b", "f", "}")],
        [ToolCallDelta(0, "a", "f", "{")],
        [ToolCallDelta(0, "a", "f", "[]")],
    ],
)
def test_calls_are_never_spliced(pieces: list[ToolCallDelta]) -> None:
    with pytest.raises(InvalidChunk):
        assembled(pieces)
