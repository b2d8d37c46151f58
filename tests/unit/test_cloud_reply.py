"""Tool calls that come in parts are assembled, or refused."""

from __future__ import annotations

import pytest

from edgesdk.hybrid.cloud.cloud_reply import ReplyAssembly
from edgesdk.hybrid.cloud.wire import ChunkDelta, InvalidChunk, ToolCallDelta
from edgesdk.tools.calls import ToolCall


def assembled(*parts: ToolCallDelta) -> tuple[ToolCall, ...]:
    assembly = ReplyAssembly()
    for part in parts:
        assembly.add(ChunkDelta(calls=(part,)))
    assembly.add(ChunkDelta(finish_reason="tool_calls"))
    return assembly.complete("m", 1).calls


def test_calls_are_assembled_by_their_numbers() -> None:
    assert assembled(
        ToolCallDelta(1, "b", "g", ""),
        ToolCallDelta(0, "a", "f", '{"x"'),
        ToolCallDelta(0, "", "", ": 1}"),
    ) == (ToolCall("f", {"x": 1}, id="a"), ToolCall("g", {}, id="b"))


@pytest.mark.parametrize(
    "parts",
    [
        [ToolCallDelta(0, "a", "", "{}")],
        [ToolCallDelta(0, "a", "f", '{"x":'), ToolCallDelta(0, "b", "f", "{}")],
        [ToolCallDelta(0, "a", "f", "{")],
        [ToolCallDelta(0, "a", "f", "[]")],
    ],
)
def test_calls_are_never_spliced(parts: list[ToolCallDelta]) -> None:
    with pytest.raises(InvalidChunk):
        assembled(*parts)


def test_a_reply_without_an_end_is_broken() -> None:
    for delta in (ChunkDelta(text="x" * 2**20), ChunkDelta(reasoning="x" * 2**20)):
        assembly = ReplyAssembly()
        for _ in range(16):
            assembly.add(delta)
        with pytest.raises(InvalidChunk, match="without an end"):
            assembly.add(delta)
