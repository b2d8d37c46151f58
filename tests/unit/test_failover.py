"""Who of two attempts answers, at every order in which things may happen."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import anyio
import httpx
import pytest

from edgesdk.errors import CloudError, CloudUnreachable, DeadlineExceeded
from edgesdk.hybrid.cloud.attempt import Attempt, SendProgress
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.endpoint_state import EndpointState
from edgesdk.hybrid.cloud.failover import first_to_answer
from edgesdk.hybrid.cloud.spending import AttemptCharge
from edgesdk.hybrid.cloud.wire import ChunkDelta

LONG = 60.0


@dataclass
class Endpoint:
    """What an attempt goes through; `chunks` ends in an error where there is one."""

    name: str
    texts: tuple[str, ...] = ("a", "b")
    error: Exception | None = None
    go: anyio.Event = field(default_factory=anyio.Event)
    begun: anyio.Event = field(default_factory=anyio.Event)
    closed: int = 0

    async def chunks(self) -> AsyncGenerator[ChunkDelta, None]:
        self.begun.set()
        try:
            yield ChunkDelta()
            # Waiting for what is there already would let others go first.
            if not self.go.is_set():
                await self.go.wait()
            for text in self.texts:
                yield ChunkDelta(text=self.name + text)
            if self.error is not None:
                raise self.error
        finally:
            self.closed += 1

    def attempt(self) -> Attempt:
        cloud = Cloud("http://localhost/v1", self.name)
        charge = AttemptCharge(cloud, (0, 0), None)
        state = EndpointState(cloud, httpx.AsyncClient())
        return Attempt(state, charge, self.chunks(), SendProgress())


async def said(attempt: Attempt) -> str:
    return "".join([delta.text async for delta in attempt.deltas()])


def broken(name: str) -> Endpoint:
    return Endpoint(name, (), CloudUnreachable("no", endpoint=name))


async def test_of_two_that_begin_at_once_one_is_closed() -> None:
    one, two = Endpoint("1"), Endpoint("2")
    discarded: list[Attempt] = []

    async def make_second() -> Attempt:
        # Both have their first token before anybody looks.
        one.go.set()
        two.go.set()
        return two.attempt()

    found = await first_to_answer(one.attempt(), make_second, 0.0, discard=discarded.append)
    (other,) = discarded
    winner, loser = (one, two) if found.endpoint.cloud.model == "1" else (two, one)
    assert (winner.closed, loser.closed) == (0, 1)
    assert other is not found
    assert await said(found) == winner.name + "a" + winner.name + "b"
    assert winner.closed == 1


async def test_the_first_may_begin_while_the_second_is_prepared() -> None:
    one, two = Endpoint("1"), Endpoint("2")
    discarded: list[Attempt] = []

    async def make_second() -> Attempt:
        one.go.set()
        # As a reservation does, this cannot be interrupted.
        with anyio.CancelScope(shield=True):
            for _ in range(20):
                await anyio.sleep(0)
        return two.attempt()

    found = await first_to_answer(one.attempt(), make_second, 0.0, discard=discarded.append)
    assert await said(found) == "1a1b"
    # The second is neither kept nor forgotten.
    assert [attempt.endpoint.cloud.model for attempt in discarded] == ["2"]


async def test_without_need_there_is_no_other() -> None:
    for error in (None, CloudUnreachable("no", endpoint="1")):
        one = Endpoint("1", ("a",) if error is None else (), error)
        one.go.set()
        discarded: list[Attempt] = []

        async def make_second() -> Attempt:
            raise AssertionError("nobody needs it")

        found = await first_to_answer(one.attempt(), make_second, LONG, discard=discarded.append)
        assert (found.failure, discarded) == (error, [])


@pytest.mark.parametrize("failing", ["first", "second"])
async def test_one_that_fails_leaves_the_answer_to_the_other(failing: str) -> None:
    bad, good = broken("bad"), Endpoint("good")
    discarded: list[Attempt] = []
    first, second = (bad, good) if failing == "first" else (good, bad)

    async def make_second() -> Attempt:
        bad.go.set()
        return second.attempt()

    def heard(attempt: Attempt) -> None:
        discarded.append(attempt)

    async def later() -> None:
        while not bad.closed:
            await anyio.sleep(0)
        good.go.set()

    async with anyio.create_task_group() as group:
        group.start_soon(later)
        found = await first_to_answer(first.attempt(), make_second, 0.0, discard=heard)
    assert await said(found) == "gooda" + "goodb"
    assert [attempt.failure for attempt in discarded] == [bad.error]


async def test_where_both_fail_each_is_heard_of() -> None:
    one, two = broken("1"), broken("2")
    discarded: list[Attempt] = []

    async def make_second() -> Attempt:
        one.go.set()
        two.go.set()
        return two.attempt()

    found = await first_to_answer(one.attempt(), make_second, 0.0, discard=discarded.append)
    assert found.failure is one.error
    assert [attempt.failure for attempt in discarded] == [two.error]
    with pytest.raises(CloudError):
        await said(found)


async def test_where_there_is_no_other_the_first_goes_on() -> None:
    one = Endpoint("1")

    async def make_second() -> None:
        one.go.set()

    found = await first_to_answer(one.attempt(), make_second, 0.0, discard=pytest.fail)
    assert await said(found) == "1a1b"


async def test_who_is_cancelled_leaves_none_behind() -> None:
    one, two = Endpoint("1"), Endpoint("2")
    discarded: list[Attempt] = []

    async def make_second() -> Attempt:
        return two.attempt()

    async with anyio.create_task_group() as group:
        group.start_soon(
            lambda: first_to_answer(one.attempt(), make_second, 0.0, discard=discarded.append)  # type: ignore[arg-type]
        )
        await one.begun.wait()
        await two.begun.wait()
        group.cancel_scope.cancel()
    assert (one.closed, two.closed, len(discarded)) == (1, 1, 2)


async def test_the_deadline_ends_both() -> None:
    over = DeadlineExceeded("late")
    one, two = Endpoint("1", (), over), Endpoint("2", (), over)
    discarded: list[Attempt] = []

    async def make_second() -> Attempt:
        one.go.set()
        two.go.set()
        return two.attempt()

    found = await first_to_answer(one.attempt(), make_second, 0.0, discard=discarded.append)
    assert (found.failure, discarded[0].failure) == (over, over)
