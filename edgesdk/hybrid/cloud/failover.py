"""Makes as many attempts as a reply takes: failover, retries after a pause, and hedges."""

from __future__ import annotations

import logging
import math
import random
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import anyio
import httpx

from edgesdk.errors import (
    BudgetExceeded,
    CloudError,
    CloudRefused,
    CloudUnreachable,
    DeadlineExceeded,
    FailedAttempt,
    InvalidOption,
)
from edgesdk.hybrid.cloud.attempt import (
    BAD_REQUEST_STATUSES,
    Attempt,
    Patience,
    SendProgress,
    broken_off,
    stream_chunks,
)
from edgesdk.hybrid.cloud.cloud_reply import CloudEvent, CloudReply, ReplyAssembly, Restart
from edgesdk.hybrid.cloud.completion import completion_reply, request_completion
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.endpoint_state import EndpointState, RetryBudget
from edgesdk.hybrid.cloud.spending import CallSpending
from edgesdk.hybrid.cloud.wire import InvalidChunk
from edgesdk.system.cancellation import CancellationToken
from edgesdk.system.checks import checked_choice

OnBreak = Literal["restart", "incomplete"]

_MAX_ROUNDS = 3
# Full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
_FIRST_PAUSE, _MAX_PAUSE = 0.5, 8.0
# An endpoint that wants more time than this has not failed for the moment, it is away.
_MAX_WAIT = 30.0
_LOG = logging.getLogger("edgesdk.hybrid")


@dataclass
class _Progress:
    """What all attempts at one reply share.

    Attributes:
        key: for the endpoint, to tell a repeated request from a new one.
        reserved: seconds at the end of the deadline that are for somebody else to answer.
        excluded: endpoints that are not asked again for it.
        hedged: endpoints that had their turn of this round as a hedge.
        left: how many endpoints have their turn of this round still to come.
        sends: how far each request came.
        failures: of the attempts so far.
    """

    body: dict[str, Any]
    cancellation: CancellationToken
    spending: CallSpending
    key: str
    reserved: float
    excluded: set[EndpointState] = field(default_factory=set)
    hedged: set[EndpointState] = field(default_factory=set)
    left: int = 0
    sends: list[SendProgress] = field(default_factory=list)
    failures: list[FailedAttempt] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many requests were made."""
        return sum(send.requests for send in self.sends)

    @property
    def remaining(self) -> float:
        """Seconds that are left for the endpoints."""
        return max(self.cancellation.remaining - self.reserved, 0.0)


class Failover:
    """Asks the endpoints in order until one replies; after a pause, all of them again.

    An endpoint whose circuit is open is left out. What fails before the first token is never seen.
    After it, the reply starts over from another attempt, or ends as incomplete. Belongs to one
    event loop.

    Args:
        clouds: in order of preference.
        https: what sends requests to each of them; must not follow redirects.
        on_break, hedge_after: see `edgesdk.hybrid.client.HybridClient`.

    Raises:
        InvalidOption: an option has no such value, or there is no endpoint.
    """

    def __init__(
        self,
        clouds: tuple[Cloud, ...],
        https: tuple[httpx.AsyncClient, ...],
        on_break: OnBreak,
        hedge_after: float | None = None,
    ) -> None:
        if not clouds:
            raise InvalidOption("There is no cloud to ask.", hint="Name at least one.")
        if hedge_after is not None and not hedge_after >= 0:
            raise InvalidOption("hedge_after must not be under 0 seconds.")
        self._endpoints = [*map(EndpointState, clouds, https)]
        self._on_break: OnBreak = checked_choice("on_break", on_break, get_args(OnBreak))
        self._hedge_after = hedge_after
        self._retries = RetryBudget()

    async def reply(
        self,
        body: dict[str, Any],
        cancellation: CancellationToken,
        spending: CallSpending | None = None,
        on_break: OnBreak | None = None,
        key: str | None = None,
        *,
        fallback: bool = False,
    ) -> AsyncGenerator[CloudEvent, None]:
        """Yield the events of one reply; the last is a `CloudReply`.

        Args:
            body: a chat completion request, without model and streaming.
            cancellation: its deadline holds for all attempts together.
            spending: where each attempt is reserved before it is made; None for nowhere.
            on_break: for this one, in place of the constructor's.
            key: the idempotency key of all attempts; None for a new one. An endpoint that heeds it
                answers a request that is sent again by another process as it did the first.
            fallback: somebody else can answer, so that a part of the deadline is left for it.

        Raises:
            CloudError: no attempt brought a complete reply, and nothing was given out.
            BudgetExceeded: see `CallSpending.reserve`; no attempt was made.
            DeadlineExceeded: the time was over before the first token.
        """
        reserved = 0.0
        if fallback and cancellation.timeout is not None:
            reserved = cancellation.remaining / (1 + len(self._endpoints))
        call = _Progress(
            body, cancellation, spending or CallSpending(), key or uuid.uuid4().hex, reserved
        )
        on_break = on_break or self._on_break
        assembly, failure = ReplyAssembly(), self._all_open()
        unpaid: BudgetExceeded | None = None
        turns = self._turns(call)
        async with aclosing(turns):
            async for endpoint in turns:
                try:
                    attempt = await self._begin(endpoint, call)
                except BudgetExceeded as error:
                    call.excluded.add(endpoint)
                    unpaid = error
                    continue
                if self._hedge_after is not None:
                    attempt = await self._hedge(attempt, self._hedge_after, call)
                cloud = attempt.endpoint.cloud
                try:
                    if assembly.begun:
                        yield Restart(str(failure))
                    assembly = ReplyAssembly()
                    async with aclosing(attempt.deltas()) as deltas:
                        async for delta in deltas:
                            for event in assembly.add(delta):
                                yield event
                    for event in assembly.flush():
                        yield event
                    complete = assembly.complete(cloud.name, call.count)
                except DeadlineExceeded as late:
                    attempt.abandon()
                    if not assembly.begun:
                        late.attempts = tuple(call.failures)
                        raise
                    yield _with_failures(assembly.partial("deadline", cloud.name, call.count), call)
                    return
                except (CloudError, InvalidChunk) as error:
                    if isinstance(error, InvalidChunk):
                        error = broken_off(cloud, str(error))
                    failure = error
                    self._fail(attempt, failure, call)
                    if assembly.begun and on_break == "incomplete":
                        break
                except BaseException:
                    attempt.abandon()
                    raise
                else:
                    attempt.succeed(complete)
                    self._retries.succeed()
                    yield _with_failures(complete, call)
                    return
        if not assembly.begun:
            if unpaid is not None and not call.count:
                raise unpaid
            failure.attempts = tuple(call.failures)
            raise failure
        yield _with_failures(assembly.partial("incomplete", failure.endpoint, call.count), call)

    async def completion(
        self,
        body: dict[str, Any],
        cancellation: CancellationToken,
        spending: CallSpending | None = None,
    ) -> dict[str, Any]:
        """Return one text completion as the endpoint's JSON; errors are those of `reply`."""
        key = uuid.uuid4().hex
        call = _Progress(body, cancellation, spending or CallSpending(), key, 0.0)
        failure = self._all_open()
        turns = self._turns(call)
        async with aclosing(turns):
            async for endpoint in turns:
                attempt = await self._begin(endpoint, call)
                patience = self._patience(endpoint, call)
                try:
                    found = await request_completion(
                        endpoint, body, patience, key, cancellation, call.sends[-1]
                    )
                except CloudError as error:
                    failure = error
                    self._fail(attempt, failure, call)
                except BaseException:
                    attempt.abandon()
                    raise
                else:
                    attempt.succeed(completion_reply(found, endpoint.cloud.name, call.count))
                    self._retries.succeed()
                    return found
                finally:
                    await attempt.close()
        failure.attempts = tuple(call.failures)
        raise failure

    async def _begin(self, endpoint: EndpointState, call: _Progress) -> Attempt:
        """Make an attempt that is paid for, but not sent yet; raises BudgetExceeded."""
        progress = SendProgress()
        # It may wait for a file that other processes write.
        charge = await anyio.to_thread.run_sync(call.spending.reserve, endpoint.cloud)
        call.sends.append(progress)
        chunks = stream_chunks(
            endpoint,
            call.body,
            patience=self._patience(endpoint, call),
            idempotency_key=call.key,
            cancellation=call.cancellation,
            progress=progress,
        )
        return Attempt(endpoint, charge, chunks, progress)

    def _patience(self, endpoint: EndpointState, call: _Progress) -> Patience:
        """How long an attempt may take, so that those who come after it have time too."""
        # A hedge has its turn at the same time.
        left = call.left if self._hedge_after is None else max(call.left - 1, 0)
        timeouts, last = endpoint.cloud.timeouts, not left
        first_token = timeouts.until_first_token(last=last)
        probe_seconds = endpoint.breaker.probe_seconds
        if probe_seconds is not None and not last:
            first_token = min(first_token, probe_seconds)
        share = call.remaining / (1 + left) if left or call.reserved else math.inf
        between_tokens = timeouts.until_next_token(last=last)
        return Patience(min(first_token, share), min(between_tokens, share))

    async def _hedge(self, first: Attempt, delay: float, call: _Progress) -> Attempt:
        """Return `first`, or an attempt at the next endpoint that begins sooner."""

        async def make_second() -> Attempt | None:
            place = self._endpoints.index(first.endpoint)
            others = [*self._endpoints[place + 1 :], *self._endpoints[:place]]
            endpoint = next(
                (o for o in others if o not in call.excluded and not o.breaker.open_for), None
            )
            # Hedges come when endpoints are slow, which more requests do not make better.
            if endpoint is None or self._retries.exhausted:
                return None
            try:
                second = await self._begin(endpoint, call)
            except BudgetExceeded:
                return None
            except Exception as error:
                # The first goes on without it.
                _LOG.warning("no second endpoint was asked: %s", type(error).__name__)
                return None
            call.hedged.add(endpoint)
            return second

        def discard(attempt: Attempt) -> None:
            if isinstance(attempt.failure, CloudError):
                self._fail(attempt, attempt.failure, call)
            else:
                attempt.abandon()

        return await first_to_answer(first, make_second, delay, discard=discard)

    def _fail(self, attempt: Attempt, failure: CloudError, call: _Progress) -> None:
        call.failures.append(failure.attempt)
        if failure.status not in BAD_REQUEST_STATUSES:
            self._retries.fail()
        attempt.fail(failure)
        if isinstance(failure, CloudRefused):
            call.excluded.add(attempt.endpoint)

    async def _turns(self, call: _Progress) -> AsyncGenerator[EndpointState, None]:
        """Yield which endpoint to ask next, after the pauses that are due."""
        for number in range(_MAX_ROUNDS):
            call.hedged.clear()
            left = [each for each in self._endpoints if each not in call.excluded]
            if not left:
                return
            if number:
                longest = min(_FIRST_PAUSE * 2**number, _MAX_PAUSE)
                soonest = min(each.breaker.open_for for each in left)
                pause = max(random.uniform(0, longest), soonest)
                if self._retries.exhausted or pause > min(_MAX_WAIT, call.remaining):
                    return
                await anyio.sleep(pause)
            closed = [each for each in left if not each.breaker.open_for]
            if not closed:
                return
            for place, endpoint in enumerate(closed):
                if call.reserved and not call.remaining:
                    return
                # Another endpoint is no retry, unless all have failed before.
                is_retry = number and place
                if endpoint not in call.hedged and not (is_retry and self._retries.exhausted):
                    call.left = len(set(closed[place + 1 :]) - call.hedged)
                    yield endpoint

    def _all_open(self) -> CloudError:
        """Make the error for when no endpoint may be asked."""
        soonest = min(self._endpoints, key=lambda each: each.breaker.open_for)
        breaker, cloud = soonest.breaker, soonest.cloud
        return CloudUnreachable(
            f"{cloud.name} is left alone for {breaker.open_for:.0f} s more, because it failed:"
            f" {breaker.last_error}",
            endpoint=cloud.name,
        )


def _with_failures(reply: CloudReply, call: _Progress) -> CloudReply:
    return replace(reply, failures=tuple(call.failures))


async def first_to_answer(
    first: Attempt,
    make_second: Callable[[], Awaitable[Attempt | None]],
    delay: float,
    *,
    discard: Callable[[Attempt], None],
) -> Attempt:
    """Return the attempt whose first token came first, or `first` with its failure where none came.

    The other is closed before anything of it was seen. Dean, Barroso, "The Tail at Scale",
    Communications of the ACM 56(2), 2013: hedged requests.

    Args:
        make_second: called after `delay` seconds without a first token or a failure; returns None
            where there is to be no second.
        discard: called with each attempt that is not returned.
    """
    attempts = [first]
    running = 0
    winner: Attempt | None = None
    changed = anyio.Event()

    async def run(attempt: Attempt) -> None:
        nonlocal running, winner, changed
        await attempt.look_ahead()
        running -= 1
        if attempt.failure is None:
            winner = winner or attempt
        changed.set()

    try:
        async with anyio.create_task_group() as group:
            running += 1
            group.start_soon(run, first)
            with anyio.move_on_after(delay):
                await changed.wait()
            if running and (second := await make_second()) is not None:
                attempts.append(second)
                running += 1
                group.start_soon(run, second)
            while running and winner is None:
                await changed.wait()
                changed = anyio.Event()
            group.cancel_scope.cancel()
    except BaseException:
        await _discard_all(attempts, discard)
        raise
    found = winner or first
    await _discard_all([attempt for attempt in attempts if attempt is not found], discard)
    return found


async def _discard_all(attempts: list[Attempt], discard: Callable[[Attempt], None]) -> None:
    with anyio.CancelScope(shield=True):
        for attempt in attempts:
            await attempt.close()
            discard(attempt)
