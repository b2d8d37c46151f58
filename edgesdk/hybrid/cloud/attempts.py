"""As many attempts as an answer takes, over several endpoints, within one deadline."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

import anyio
import httpx

from edgesdk.errors import (
    CloudBroken,
    CloudError,
    CloudRefused,
    CloudUnreachable,
    DeadlineExceeded,
    InvalidOption,
)
from edgesdk.hybrid.cloud.answer import CloudEvent, Draft, Restart
from edgesdk.hybrid.cloud.attempt import attempt
from edgesdk.hybrid.cloud.chunks import BadChunk
from edgesdk.hybrid.cloud.clock import Deadline
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.health import Health, RetryBudget

OnBreak = Literal["restart", "incomplete"]

_ROUNDS = 3
# Full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0
# An endpoint that wants more time than this has not failed for the moment, it is away.
_LONGEST_WAIT = 30.0


class Attempts:
    """Asks each endpoint that is well in order, until one answers; after a pause, all of them
    again.

    What fails before the first piece is never seen. After it, the answer starts over from another
    attempt, or ends as incomplete. Belongs to one event loop.

    Args:
        clouds: in order of preference.
        http: must not follow redirects.
        on_break: what an answer that broke off becomes.

    Raises:
        InvalidOption: there is no endpoint.
    """

    def __init__(
        self, clouds: tuple[Cloud, ...], http: httpx.AsyncClient, on_break: OnBreak
    ) -> None:
        if not clouds:
            raise InvalidOption("There is no cloud to ask.", hint="Name at least one.")
        self._clouds = clouds
        self._http = http
        self._on_break = on_break
        self._health = [Health() for _ in clouds]
        self._budget = RetryBudget()

    async def answer(
        self, body: dict[str, Any], deadline: Deadline, on_break: OnBreak | None = None
    ) -> AsyncGenerator[CloudEvent, None]:
        """Events of one answer; the last is a `CloudAnswer`.

        Args:
            on_break: for this one, in place of the constructor's.

        Raises:
            CloudError: no attempt brought a whole answer, and nothing was given out.
            DeadlineExceeded: the time was over before the first piece.
        """
        key = uuid.uuid4().hex
        on_break = on_break or self._on_break
        draft, count, failure = Draft(), 0, self._resting()
        refused: set[int] = set()
        turns = self._turns(refused, deadline)
        async with aclosing(turns):
            async for index in turns:
                cloud, health = self._clouds[index], self._health[index]
                if draft.begun:
                    yield Restart(str(failure))
                draft = Draft()
                count += 1
                health.asked()
                try:
                    steps = attempt(self._http, cloud, body, idempotency_key=key, deadline=deadline)
                    async with aclosing(steps):
                        async for delta in steps:
                            for event in draft.add(delta):
                                yield event
                    whole = draft.whole(cloud.name, count)
                except DeadlineExceeded:
                    health.left()
                    if not draft.begun:
                        raise
                    yield draft.partial("deadline", cloud.name, count)
                    return
                except (CloudError, BadChunk) as error:
                    failure = _failure(error, cloud)
                    self._budget.failed()
                    health.failed(failure, wait=failure.retry_after)
                    if isinstance(failure, CloudRefused):
                        refused.add(index)
                    if draft.begun and on_break == "incomplete":
                        break
                except BaseException:
                    health.left()
                    raise
                else:
                    health.answered()
                    self._budget.answered()
                    yield whole
                    return
        if not draft.begun:
            raise failure
        yield draft.partial("incomplete", failure.endpoint, count)

    async def _turns(self, refused: set[int], deadline: Deadline) -> AsyncGenerator[int, None]:
        """Which endpoint to ask next, after the pauses that are due."""
        for number in range(_ROUNDS):
            left = [index for index in range(len(self._clouds)) if index not in refused]
            if not left:
                return
            if number:
                longest = min(_FIRST_PAUSE * 2**number, _LONGEST_PAUSE)
                soonest = min(self._health[index].rests_for for index in left)
                pause = max(random.uniform(0, longest), soonest)
                if self._budget.spent or pause > min(_LONGEST_WAIT, deadline.remaining):
                    return
                await anyio.sleep(pause)
            well = [index for index in left if not self._health[index].rests_for]
            if not well:
                return
            for place, index in enumerate(well):
                # Another endpoint is no retry, unless all have failed before.
                if not (number and place and self._budget.spent):
                    yield index

    def _resting(self) -> CloudError:
        """The error where no endpoint may be asked."""
        soonest = min(range(len(self._clouds)), key=lambda i: self._health[i].rests_for)
        health, cloud = self._health[soonest], self._clouds[soonest]
        return CloudUnreachable(
            f"{cloud.name} is left alone for {health.rests_for:.0f} s more, because it failed:"
            f" {health.last_error}",
            endpoint=cloud.name,
        )


def _failure(error: CloudError | BadChunk, cloud: Cloud) -> CloudError:
    if isinstance(error, CloudError):
        return error
    return CloudBroken(f"{cloud.name} broke off: {error}.", endpoint=cloud.name)
