"""Queues of requests in a folder of the test, with a clock that stands still."""

from __future__ import annotations

from pathlib import Path

from edgesdk.hybrid.offline.queue import OfflineQueue, QueuedRequest
from edgesdk.options import Options

KEY = bytes(range(32))


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def request(text: str) -> QueuedRequest:
    return QueuedRequest([{"role": "user", "content": text}], Options(), "redact")


def queue_at(folder: Path, clock: Clock | None = None, **changes: float) -> OfflineQueue:
    return OfflineQueue(folder / "q", key=KEY, clock=clock or Clock(), **changes)  # type: ignore[arg-type]


def texts(queue: OfflineQueue) -> list[str]:
    """All that can be claimed, in order; nothing is changed."""
    claims = []
    while (claim := queue.claim(after=claims[-1].entry.id if claims else 0)) is not None:
        claims.append(claim)
    for claim in claims:
        claim.release()
    return [claim.request.messages[0]["content"] for claim in claims]
