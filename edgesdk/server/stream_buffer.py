"""Holds back what of a stream a cloud may still withdraw."""

from __future__ import annotations

from edgesdk.errors import CloudBroken
from edgesdk.generation.loop import Step
from edgesdk.hybrid.cloud.cloud_reply import Restart, TextDelta
from edgesdk.hybrid.storage.journal import Route
from edgesdk.reply import ReasoningDelta
from edgesdk.server.answers import AnswerEvent
from edgesdk.server.hybrid_routing import HoldPolicy


class StreamBuffer:
    """Holds back what a client that only appends text must not be shown yet.

    Such a client cannot take back what it has shown. So pieces are held back until nobody will
    withdraw them, as far as the policy says.

    Attributes:
        route: who said what was shown; None until something was.
        reason: why the device's draft was withdrawn; None where it was not, or nobody said.
    """

    def __init__(self, policy: HoldPolicy) -> None:
        self.route: Route | None = None
        self.reason: str | None = None
        self._policy = policy
        self._held: list[AnswerEvent] = []

    def feed(self, event: AnswerEvent) -> list[AnswerEvent]:
        """What may be shown now.

        Raises:
            CloudBroken: what was shown is withdrawn, and the client could not be told.
        """
        if isinstance(event, Restart):
            return self._restart(event)
        route = _route_of(event)
        if self._policy == "answer" or (self._policy == "decision" and route == "local"):
            self._held.append(event)
            return []
        self.route = route
        return [event]

    def flush(self) -> list[AnswerEvent]:
        """What was held back, at the answer's end."""
        held, self._held = self._held, []
        return held

    def _restart(self, event: Restart) -> list[AnswerEvent]:
        self._held.clear()
        if self.route is None:
            self.reason = event.reason
            return []
        if self._policy == "nothing":
            return [event]
        raise CloudBroken(
            f"The answer was withdrawn under way: {event.reason}.", endpoint="", hint="Ask again."
        )


def _route_of(event: AnswerEvent) -> Route:
    if isinstance(event, Step):
        return "local"
    return event.route if isinstance(event, TextDelta | ReasoningDelta) else "cloud"
