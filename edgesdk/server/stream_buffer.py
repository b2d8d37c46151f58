"""Holds back what a client that only appends text must not be shown yet."""

from __future__ import annotations

from edgesdk.errors import CloudBroken
from edgesdk.hybrid.cloud.cloud_reply import Restart, TextDelta
from edgesdk.hybrid.reply import HybridEvent
from edgesdk.hybrid.storage.journal import Route
from edgesdk.server.hybrid_routing import HoldPolicy


class StreamBuffer:
    """Takes the events of one answer.

    Attributes:
        route: who says what was shown; None until something was.
        reason: why the device's draft was withdrawn; None where it was not, or nobody said.
    """

    def __init__(self, hold: HoldPolicy) -> None:
        self.route: Route | None = None
        self.reason: str | None = None
        self._hold = hold
        self._held: list[HybridEvent] = []

    def feed(self, event: HybridEvent) -> list[HybridEvent]:
        """What may be shown now.

        Raises:
            CloudBroken: what was shown is withdrawn, and the client could not be told.
        """
        if isinstance(event, Restart):
            return self._restart(event)
        speaker: Route = event.route if isinstance(event, TextDelta) else "cloud"
        if self._hold == "answer" or (self._hold == "decision" and speaker == "local"):
            self._held.append(event)
            return []
        self.route = speaker
        return [event]

    def rest(self) -> list[HybridEvent]:
        """What was held back, at the answer's end."""
        held, self._held = self._held, []
        return held

    def _restart(self, event: Restart) -> list[HybridEvent]:
        self._held.clear()
        if self.route is None:
            self.reason = event.reason
            return []
        if self._hold == "nothing":
            return [event]
        raise CloudBroken(
            f"The answer was withdrawn under way: {event.reason}.", endpoint="", hint="Ask again."
        )
