"""One attempt, and who hears how it went: the endpoint's health, and the budget."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from edgesdk.errors import CloudError
from edgesdk.hybrid.cloud.attempt import Sending
from edgesdk.hybrid.cloud.charges import Charge
from edgesdk.hybrid.cloud.chunks import Delta, Usage
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.health import Health

# A gateway that heard nothing from the machine behind it does not know what that one did.
_UNKNOWING = (502, 504)


class Trial:
    """What an endpoint sends, with a look ahead to its first token.

    One of `answered`, `failed` and `left` must follow, after its end.

    Args:
        index: of the endpoint.
        steps: of `edgesdk.hybrid.cloud.attempt.attempt`, not yet begun.
        sending: what `steps` tells of the request.
    """

    def __init__(
        self,
        index: int,
        cloud: Cloud,
        health: Health,
        charge: Charge,
        steps: AsyncGenerator[Delta, None],
        sending: Sending,
    ) -> None:
        self.index = index
        self.cloud = cloud
        self.failure: Exception | None = None
        self._health = health
        self._charge = charge
        self._steps = steps
        self._sending = sending
        self._ahead: list[Delta] = []
        health.asked()

    async def look_ahead(self) -> None:
        """Read until there is something to show, or `failure` is set."""
        try:
            async for delta in self._steps:
                self._ahead.append(delta)
                if not delta.empty or delta.finish_reason:
                    return
        except Exception as error:
            self.failure = error

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """All that it sends, what was looked at included; raises what `attempt` does."""
        for delta in self._ahead:
            yield delta
        if self.failure is not None:
            raise self.failure
        async with aclosing(self._steps):
            async for delta in self._steps:
                yield delta

    async def close(self) -> None:
        """End the request, where `deltas` was not read."""
        await self._steps.aclose()

    def answered(self, usage: Usage | None) -> None:
        """It gave a whole answer."""
        self._health.answered()
        if usage is not None:
            self._charge.settle(usage)

    def failed(self, error: CloudError) -> None:
        """It gave none. What it did of it may cost, unless it says that it did nothing."""
        self._health.failed(error, wait=error.retry_after)
        declined = error.status is not None and error.status not in (200, *_UNKNOWING)
        if declined or not self._sending.begun:
            self._charge.release()

    def left(self) -> None:
        """It ended without telling anything about the endpoint."""
        self._health.left()
        if not self._sending.begun:
            self._charge.release()
