"""What the device of a hybrid server answers alone, which is said as of any other answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

from edgesdk.decode.loop import Finish, Step
from edgesdk.model import Model
from edgesdk.server.asking import Asked, ask_completion
from edgesdk.server.calling import Part
from edgesdk.server.hybrid.wording import headers_of, report_of_device
from edgesdk.server.settings import ServerSettings
from edgesdk.server.shapes import Json, Shape

_NO_CHAT = "a cloud answers chats only"


def ask_completion_alone(body: bytes, settings: ServerSettings, started: float) -> Asked:
    """Read the body of `/v1/completions`: a text that goes on, for which a chat's endpoint has no
    place. Raises as `edgesdk.server.asking.ask_completion` does."""
    return alone(ask_completion(body, settings, started), _NO_CHAT)


def alone(asked: Asked, reason: str) -> Asked:
    """A request that nobody but the device answers, for `reason`."""

    def shape_for(model: Model) -> Shape:
        return _AloneShape(asked.shape_for(model), reason, asked.job.started)

    return replace(asked, shape_for=shape_for, headers=headers_of("local", reason))


class _AloneShape:
    """Implements `Shape`: another one's words, and who answered."""

    def __init__(self, shape: Shape, reason: str, started: float) -> None:
        self._shape = shape
        self._reason = reason
        self._started = started
        self.opening: Callable[[], list[Json]] = shape.opening
        self.chunks: Callable[[list[Step], Part], list[Json]] = shape.chunks

    def closing(self, finish: Finish) -> Json:
        return self._shape.closing(finish) | self._report(finish)

    def usage_chunk(self, finish: Finish) -> Json:
        return self._shape.usage_chunk(finish) | self._report(finish)

    def whole(self, steps: list[Step], parts: list[Part], finish: Finish) -> Json:
        return self._shape.whole(steps, parts, finish) | self._report(finish)

    def _report(self, finish: Finish) -> Json:
        report = report_of_device(self._reason, finish, perf_counter() - self._started)
        return {"edgesdk": report}
