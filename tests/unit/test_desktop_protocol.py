"""Lines between the window and the engine process."""

from __future__ import annotations

import pytest
from edgesdk_desktop import protocol
from edgesdk_desktop.protocol import from_line, to_line


@pytest.mark.parametrize(
    "message",
    [
        protocol.ListModels(),
        protocol.Ask("a", [{"role": "user", "content": "x\n\u2028é"}], "你好", "ask", "f"),
        protocol.SetCloud("https://x/v1", "m", "sk-1"),
        protocol.Answered("a", "t", "cut", {"money": 0.1, "confidence": None}),
        protocol.UploadShown(True, [], [], ["EMAIL"], ["m at x"], "ask", "the default"),
    ],
)
def test_messages_come_back_from_one_line(message: protocol.Request | protocol.Event) -> None:
    line = to_line(message)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert from_line(line) == message


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{}",
        "[]",
        "null",
        "{",
        '{"type": "Nope"}',
        '{"type": "Ask"}',
        '{"type": "Stop", "x": 1}',
    ],
)
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(ValueError):
        from_line(line)


def test_keys_are_not_shown() -> None:
    assert "sk-1" not in repr(protocol.SetCloud("https://x/v1", "m", "sk-1"))
