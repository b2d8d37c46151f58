"""Models are found, loaded when asked for, and unloaded in time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.fake_engine import FakeEngine
from support.served import FakeModels
from support.untrained_gguf import write_untrained_gguf

import edgesdk
from edgesdk.errors import EngineError
from edgesdk.server.api_errors import ApiError
from edgesdk.server.model_pool import ModelPool, PoolEntry, StoreModels
from edgesdk.server.model_source import find_model
from edgesdk.server.settings import ServerSettings
from edgesdk.server.state_pool import StatePool
from edgesdk.store import Store


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class CountingEngine(FakeEngine):
    """Remembers that it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def pool_of(
    models: FakeModels, clock: Clock | None = None, **settings: Any
) -> AsyncIterator[ModelPool]:
    with ThreadPoolExecutor(4) as executor:
        pool = ModelPool(models, ServerSettings(**settings), executor, clock=clock or Clock())
        yield pool
        await pool.close()


async def use(pool: ModelPool, name: str) -> PoolEntry:
    """Use a model once, and wait until it is loaded."""
    entry = await pool.enter(name)
    await entry.loading
    return entry


def loaded(pool: ModelPool) -> list[str]:
    return sorted(loaded.model_info.name for loaded in pool.loaded_models())


async def settled() -> None:
    """Let everything that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0.005)


async def test_a_model_is_loaded_once_for_all_who_ask() -> None:
    models = FakeModels(a=FakeEngine)
    async with pool_of(models) as pool:
        entries = await asyncio.gather(*(use(pool, "a") for _ in range(5)))
        assert models.loads == ["a"]
        assert {id(entry) for entry in entries} == {id(entries[0])}
        for entry in entries:
            pool.leave(entry)


async def test_the_one_used_longest_ago_makes_room() -> None:
    clock = Clock()
    engines = {name: CountingEngine() for name in "abc"}
    models = FakeModels(**{name: (lambda e=e: e) for name, e in engines.items()})
    async with pool_of(models, clock, max_models=2) as pool:
        for name in ("a", "b", "a", "c"):
            clock.now += 1
            pool.leave(await use(pool, name))
        assert loaded(pool) == ["a", "c"]
        assert engines["b"].closed
        assert not engines["a"].closed


async def test_one_that_is_in_use_never_makes_room() -> None:
    models = FakeModels(a=FakeEngine, b=FakeEngine)
    async with pool_of(models, max_models=1) as pool:
        held = await use(pool, "a")
        waiting = asyncio.create_task(use(pool, "b"))
        late = asyncio.create_task(use(pool, "a"))
        await settled()
        assert not waiting.done()
        # The loaded model is busy, but who came later does not go before who waits for room.
        assert not late.done()
        assert loaded(pool) == ["a"]
        pool.leave(held)
        entry = await waiting
        assert loaded(pool) == ["b"]
        pool.leave(entry)
        pool.leave(await late)
        assert models.loads == ["a", "b", "a"]


async def test_one_who_waits_for_room_can_give_up() -> None:
    models = FakeModels(a=FakeEngine, b=FakeEngine)
    async with pool_of(models, max_models=1) as pool:
        held = await use(pool, "a")
        waiting = asyncio.create_task(use(pool, "b"))
        await settled()
        waiting.cancel()
        await asyncio.wait([waiting])
        pool.leave(await use(pool, "a"))
        pool.leave(held)
        assert models.loads == ["a"]


async def test_the_memory_limit() -> None:
    # Files of 60 bytes, and 600 of memory.
    models = FakeModels(size=60, a=FakeEngine, b=FakeEngine)
    for limit, kept in ((1199, ["b"]), (1200, ["a", "b"])):
        async with pool_of(models, memory_limit=limit, max_models=5) as pool:
            for name in ("a", "b"):
                pool.leave(await use(pool, name))
            assert loaded(pool) == kept
    async with pool_of(models, memory_limit=599) as pool:
        with pytest.raises(ApiError) as caught:
            await pool.enter("a")
        assert (caught.value.status, caught.value.code) == (503, "model_too_large")


async def test_one_who_gives_up_while_room_is_made_leaves_no_model_behind() -> None:
    gate = threading.Event()
    engine = CountingEngine()

    class Busy(FakeModels):
        def memory(self, name: str) -> int:
            # The only thread is taken when the old model is to be freed.
            if name == "b":
                executor.submit(gate.wait, 20)
            return super().memory(name)

    models = Busy(a=lambda: engine, b=FakeEngine)
    with ThreadPoolExecutor(1) as executor:
        pool = ModelPool(models, ServerSettings(max_models=1), executor)
        pool.leave(await use(pool, "a"))
        waiting = asyncio.create_task(use(pool, "b"))
        await settled()
        waiting.cancel()
        await asyncio.wait([waiting])
        gate.set()
        await settled()
        assert loaded(pool) == []
        assert engine.closed


async def test_a_model_that_cannot_be_opened() -> None:
    class Damaged(FakeModels):
        def memory(self, name: str) -> int:
            raise EngineError("The header is cut off.")

    models = Damaged(a=FakeEngine)
    async with pool_of(models) as pool:
        with pytest.raises(ApiError, match="The header is cut off") as caught:
            await pool.enter("a")
        assert (caught.value.status, caught.value.code) == (503, "model_not_loaded")
        assert models.loads == []


async def test_idle_models_are_unloaded() -> None:
    clock = Clock()
    engine = CountingEngine()
    models = FakeModels(a=lambda: engine, b=FakeEngine)
    async with pool_of(models, clock, idle_seconds=10) as pool:
        first, second = await use(pool, "a"), await use(pool, "b")
        pool.leave(first)
        clock.now = 9.9
        await pool.evict_idle()
        assert loaded(pool) == ["a", "b"]
        clock.now = 10
        await pool.evict_idle()
        assert engine.closed
        assert loaded(pool) == ["b"]
        pool.leave(second)
        assert (await use(pool, "a")).users == 1
        assert models.loads == ["a", "b", "a"]


async def test_a_model_that_fails_to_load_is_tried_again() -> None:
    def fail() -> FakeEngine:
        raise EngineError("No such device.")

    models = FakeModels(a=fail)
    async with pool_of(models, max_models=1) as pool:
        for attempt in (1, 2):
            entry = await pool.enter("a")
            with pytest.raises(ApiError, match="No such device") as caught:
                await entry.loading
            pool.leave(entry)
            assert caught.value.status == 503
            assert caught.value.retry_after
            await settled()
            assert len(models.loads) == attempt
        with pytest.raises(ApiError) as missing:
            await pool.enter("absent")
        assert missing.value.status == 404


def filled(engine: FakeEngine, pool: StatePool, tokens: list[int]) -> Any:
    state = engine.new_state()
    state.extend(tokens)
    pool.release(engine, state)
    return state


def test_the_next_turn_gets_the_sequence_of_the_last() -> None:
    engine = FakeEngine()
    pool = StatePool(4)
    filled(engine, pool, [1, 2, 9])
    mine = filled(engine, pool, [1, 2, 3, 4])
    assert pool.take(engine, [1, 2, 3, 4, 5]) is mine
    assert len(pool) == 1


def test_another_conversation_gets_a_fork_of_a_long_beginning() -> None:
    engine = FakeEngine()
    pool = StatePool(4)
    beginning = [7] * 100
    theirs = filled(engine, pool, [*beginning, *[8] * 200])
    mine = pool.take(engine, [*beginning, 9])
    assert mine is not theirs
    assert mine.tokens == theirs.tokens
    mine.rewind(100)
    assert len(theirs.tokens) == 300
    assert pool.take(engine, [*beginning, *[8] * 200, 1]) is theirs


def test_a_beginning_that_is_not_worth_a_copy() -> None:
    engine = FakeEngine()
    pool = StatePool(4)
    filled(engine, pool, [7] * 100)
    assert pool.take(engine, [7, 7, 1]).tokens == ()
    assert pool.take(engine, [1]).tokens == ()


@pytest.mark.parametrize("limit", [0, 2])
def test_no_more_are_kept_than_that(limit: int) -> None:
    engine = FakeEngine()
    pool = StatePool(limit)
    states = [filled(engine, pool, [i]) for i in range(1, 5)]
    assert [s.closed for s in states] == [True] * (4 - limit) + [False] * limit
    pool.close()
    assert all(s.closed for s in states)


def test_the_states_of_the_engine_before_are_freed() -> None:
    cpu, npu = FakeEngine(), FakeEngine()
    pool = StatePool(4)
    under_way = pool.take(cpu, [1])
    idle = filled(cpu, pool, [1, 2, 3])
    mine = pool.take(npu, [1, 2, 3])
    assert (mine.tokens, idle.closed, len(pool)) == ((), True, 0)
    mine.extend([1, 2, 3])
    pool.release(cpu, under_way)
    pool.release(npu, mine)
    assert pool.take(npu, [1, 2, 3, 4]) is mine
    assert under_way.closed


@pytest.mark.parametrize(("context", "planned"), [(None, 512), (64, 64), (10**9, 512)])
def test_the_memory_of_a_file_is_that_of_its_plan(
    tmp_path: Path, context: int | None, planned: int
) -> None:
    path = write_untrained_gguf(tmp_path / "tiny.gguf")
    models = StoreModels([str(path)], store=Store(tmp_path / "store"), context=context)
    need = edgesdk.plan(path, context=planned).need
    assert models.memory("tiny") == need.runtime + need.weights + need.kv_cache + need.scratch
    assert models.memory("tiny") > path.stat().st_size
    several = StoreModels(
        [str(path)], store=Store(tmp_path / "store"), context=context, conversations=3
    )
    assert several.memory("tiny") - models.memory("tiny") == 2 * (need.kv_cache + need.scratch)


def test_what_a_file_says_of_its_model(tmp_path: Path) -> None:
    path = write_untrained_gguf(tmp_path / "tiny.gguf")
    for context, length in ((None, 512), (64, 64)):
        models = StoreModels([str(path)], store=Store(tmp_path / "store"), context=context)
        info = find_model(models, "")
        assert (info.name, info.context_length, info.named) == ("tiny", length, True)
        assert info.capabilities == ("completion",)
