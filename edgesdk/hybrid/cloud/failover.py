"""Retries a request, over several endpoints and within one deadline."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import httpx

from edgesdk.errors import (
    BudgetExceeded,
    CloudBroken,
    CloudError,
    CloudRefused,
    CloudUnreachable,
    DeadlineExceeded,
    InvalidOption,
)
from edgesdk.hybrid.cloud.attempt import Attempt, SendProgress, attempt
from edgesdk.hybrid.cloud.circuit_breaker import CircuitBreaker, RetryBudget
from edgesdk.hybrid.cloud.cloud_reply import CloudEvent, ReplyAssembly, Restart
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.hedging import first_to_answer
from edgesdk.hybrid.cloud.spending import Charges, NoCharge
from edgesdk.hybrid.cloud.wire import InvalidChunk
from edgesdk.system.cancellation import CancellationToken

OnBreak = Literal["restart", "incomplete"]

_ROUNDS = 3
# Full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0
# An endpoint that wants more time than this has not failed for the moment, it is away.
_LONGEST_WAIT = 30.0


@dataclass
class _Call:
    """What all attempts at one answer share.

    Attributes:
        key: for the endpoint, to tell a repeated request from a new one.
        out: endpoints that are not asked again for it.
        hedged: endpoints that had their turn of this round before it came.
        count: how many requests were made.
    """

    body: dict[str, Any]
    deadline: CancellationToken
    charges: Charges
    key: str
    out: set[int] = field(default_factory=set)
    hedged: set[int] = field(default_factory=set)
    count: int = 0


class Failover:
    """Asks each endpoint that is well in order, until one answers; after a pause, all of them
    again.

    What fails before the first piece is never seen. After it, the answer starts over from another
    attempt, or ends as incomplete. Belongs to one event loop.

    Args:
        clouds: in order of preference.
        http: must not follow redirects.
        on_break: what an answer that broke off becomes.
        hedge_after: seconds without a first token after which the next endpoint is asked too;
            None for never.

    Raises:
        InvalidOption: there is no endpoint, or `hedge_after` is negative.
    """

    def __init__(
        self,
        clouds: tuple[Cloud, ...],
        http: httpx.AsyncClient,
        on_break: OnBreak,
        hedge_after: float | None = None,
    ) -> None:
        if not clouds:
            raise InvalidOption("There is no cloud to ask.", hint="Name at least one.")
        if hedge_after is not None and not hedge_after >= 0:
            raise InvalidOption("hedge_after must not be under 0 seconds.")
        self._clouds = clouds
        self._http = http
        self._on_break = on_break
        self._hedge_after = hedge_after
        self._health = [CircuitBreaker() for _ in clouds]
        self._budget = RetryBudget()

    async def answer(
        self,
        body: dict[str, Any],
        deadline: CancellationToken,
        charges: Charges | None = None,
        on_break: OnBreak | None = None,
        key: str | None = None,
    ) -> AsyncGenerator[CloudEvent, None]:
        """Events of one answer; the last is a `CloudAnswer`.

        Args:
            charges: each attempt is reserved there before it is made; one that cannot be paid is
                not made.
            on_break: for this one, in place of the constructor's.
            key: the idempotency key of all attempts; None for a new one.

        Raises:
            CloudError: no attempt brought a whole answer, and nothing was given out.
            BudgetExceeded: see `Charges.reserve`; no attempt was made.
            DeadlineExceeded: the time was over before the first piece.
        """
        call = _Call(body, deadline, charges or NoCharge(), key or uuid.uuid4().hex)
        on_break = on_break or self._on_break
        draft, failure = ReplyAssembly(), self._resting()
        unpaid: BudgetExceeded | None = None
        turns = self._turns(call)
        async with aclosing(turns):
            async for index in turns:
                try:
                    trial = await self._begin(index, call)
                except BudgetExceeded as error:
                    call.out.add(index)
                    unpaid = error
                    continue
                if self._hedge_after is not None:
                    trial = await self._hedge(trial, self._hedge_after, call)
                name = trial.cloud.name
                try:
                    if draft.begun:
                        yield Restart(str(failure))
                    draft = ReplyAssembly()
                    async with aclosing(trial.deltas()) as deltas:
                        async for delta in deltas:
                            for event in draft.add(delta):
                                yield event
                    whole = draft.whole(name, call.count)
                except DeadlineExceeded:
                    trial.left()
                    if not draft.begun:
                        raise
                    yield draft.partial("deadline", name, call.count)
                    return
                except (CloudError, InvalidChunk) as error:
                    failure = _failure(error, trial.cloud)
                    self._failed(trial, failure, call)
                    if draft.begun and on_break == "incomplete":
                        break
                except BaseException:
                    trial.left()
                    raise
                else:
                    trial.answered(whole.usage)
                    self._budget.answered()
                    yield whole
                    return
        if not draft.begun:
            raise unpaid if unpaid is not None and not call.count else failure
        yield draft.partial("incomplete", failure.endpoint, call.count)

    async def _begin(self, index: int, call: _Call) -> Attempt:
        """An attempt that is paid for, not yet sent.

        Raises:
            BudgetExceeded: see `Charges.reserve`.
        """
        cloud, sending = self._clouds[index], SendProgress()
        # It may wait for a file that other processes write.
        charge = await anyio.to_thread.run_sync(call.charges.reserve, cloud)
        call.count += 1
        steps = attempt(
            self._http,
            cloud,
            call.body,
            idempotency_key=call.key,
            deadline=call.deadline,
            sending=sending,
        )
        return Attempt(index, cloud, self._health[index], charge, steps, sending)

    async def _hedge(self, first: Attempt, delay: float, call: _Call) -> Attempt:
        """`first`, or an attempt at the next endpoint that is faster to begin."""

        async def another() -> Attempt | None:
            count = len(self._clouds)
            others = [(first.index + step) % count for step in range(1, count)]
            index = next(
                (i for i in others if i not in call.out and not self._health[i].rests_for), None
            )
            # Hedges come when endpoints are slow, which more requests do not make better.
            if index is None or self._budget.spent:
                return None
            try:
                trial = await self._begin(index, call)
            except BudgetExceeded:
                return None
            call.hedged.add(index)
            return trial

        def lost(trial: Attempt) -> None:
            if isinstance(trial.failure, CloudError):
                self._failed(trial, trial.failure, call)
            else:
                trial.left()

        return await first_to_answer(first, another, delay, lost=lost)

    def _failed(self, trial: Attempt, failure: CloudError, call: _Call) -> None:
        self._budget.failed()
        trial.failed(failure)
        if isinstance(failure, CloudRefused):
            call.out.add(trial.index)

    async def _turns(self, call: _Call) -> AsyncGenerator[int, None]:
        """Which endpoint to ask next, after the pauses that are due."""
        for number in range(_ROUNDS):
            call.hedged.clear()
            left = [index for index in range(len(self._clouds)) if index not in call.out]
            if not left:
                return
            if number:
                longest = min(_FIRST_PAUSE * 2**number, _LONGEST_PAUSE)
                soonest = min(self._health[index].rests_for for index in left)
                pause = max(random.uniform(0, longest), soonest)
                if self._budget.spent or pause > min(_LONGEST_WAIT, call.deadline.remaining):
                    return
                await anyio.sleep(pause)
            well = [index for index in left if not self._health[index].rests_for]
            if not well:
                return
            for place, index in enumerate(well):
                # Another endpoint is no retry, unless all have failed before.
                if index not in call.hedged and not (number and place and self._budget.spent):
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


def _failure(error: CloudError | InvalidChunk, cloud: Cloud) -> CloudError:
    if isinstance(error, CloudError):
        return error
    return CloudBroken(f"{cloud.name} broke off: {error}.", endpoint=cloud.name)
