"""Stop means stop: whatever an answer is at, its end is the end of the engine's work for it.

The engines here are fake. One that is told to wait does so until it is cancelled, so that a test
that passes has seen the call under way being ended; it would hang otherwise, and then fail.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path

import pytest

from edgesdk.errors import DeadlineExceeded
from edgesdk.generation.prefill import PREFILL_CHUNK
from edgesdk.generation.prefix_cache import PrefixCache
from edgesdk.generation.speculation import LoadedDraftModel
from edgesdk.model import Model
from edgesdk.options import Options
from edgesdk.reply import ReplyStream
from edgesdk.request import Request
from edgesdk.runtime import Runtime
from edgesdk.text.prompts import PromptEncoder
from edgesdk.text.template import ChatTemplate
from tests.support.fake_engine import (
    TEMPLATE,
    ByteTokenizer,
    FakeDecodeState,
    FakeEngine,
    fake_model,
)
from tests.support.waiting import until

LONG = "x" * (3 * PREFILL_CHUNK)


class Stuck:
    """`before_extend` of an engine whose call number `at` lasts until it is cancelled."""

    def __init__(self, at: int) -> None:
        self.calls = 0
        self.reached = threading.Event()
        self._at = at

    def __call__(self, state: FakeDecodeState) -> None:
        self.calls += 1
        if self.calls == self._at:
            self.reached.set()
            assert state.interrupted.wait(30)


def cancelled_at(stuck: Stuck, stream: ReplyStream) -> None:
    """Read `stream`, and cancel it from another thread when the engine is stuck."""

    def cancel() -> None:
        assert stuck.reached.wait(30)
        stream.cancel()

    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    for _ in stream:
        pass
    thread.join(30)
    assert stream.reply.finish_reason == "cancelled"


@pytest.mark.parametrize("call", [1, 2])
def test_a_chunk_of_the_prompt_that_is_under_way(call: int) -> None:
    stuck = Stuck(call)
    engine = FakeEngine(before_extend=stuck)
    model = fake_model(engine)

    stream = model.stream(LONG)
    cancelled_at(stuck, stream)

    assert stuck.calls == call
    assert engine.states[0].extended == [PREFILL_CHUNK] * (call - 1)
    assert engine.states[0].closed
    assert stream.reply.receipt.time_to_first_token is None
    assert model.respond("Hi").text == "Hello there."


def test_a_deadline_ends_a_chunk_that_is_under_way() -> None:
    stuck = Stuck(1)
    engine = FakeEngine(before_extend=stuck)

    with pytest.raises(DeadlineExceeded):
        fake_model(engine).respond(LONG, deadline=0.05)

    assert engine.states[0].extended == []
    assert engine.states[0].closed


def test_a_step_that_is_under_way_and_text_that_was_held_back() -> None:
    stuck = Stuck(4)
    engine = FakeEngine(b"Hello there.", before_extend=stuck)
    chat = fake_model(engine).chat()

    stream = chat.stream("Hi", stop=["lost"])
    cancelled_at(stuck, stream)

    assert stuck.calls == 4
    assert stream.reply.text == "Hel"
    assert chat.messages == []
    # The chat's own sequence is as it was before the call, and goes on.
    assert engine.states[0].tokens[-2:] == tuple(b"He")
    assert chat.respond("Hi").text == "Hello there."
    assert len(engine.states) == 1


def test_a_deadline_ends_a_step_and_keeps_what_there_is() -> None:
    stuck = Stuck(4)
    reply = fake_model(FakeEngine(before_extend=stuck)).respond("Hi", deadline=0.3)
    assert (reply.text, reply.finish_reason) == ("Hel", "deadline")


def test_a_summary_that_is_under_way() -> None:
    stuck = Stuck(100)
    engine = FakeEngine(b"It was about q.", context_length=1000, before_extend=stuck)
    chat = fake_model(engine).chat(overflow="summarize")
    while len(chat.messages) < 6:
        chat.respond("q" * 200, max_tokens=30)
    before, stuck.calls = chat.messages, 97

    stream = chat.stream("q" * 200, max_tokens=250)
    cancelled_at(stuck, stream)

    assert stuck.calls == 100, "neither the summary nor the answer went on"
    assert chat.messages == before
    assert stream.reply.text == ""


def test_a_draft_model_that_reads_the_prompt() -> None:
    stuck = Stuck(2)
    draft = FakeEngine(b"Hello there.", before_extend=stuck)
    engine = FakeEngine(b"Hello there.")
    encoder = PromptEncoder(ByteTokenizer(), ChatTemplate(TEMPLATE), None, None)
    model = Model("fake", Runtime(engine, encoder, 0.0, draft=LoadedDraftModel(draft, 256)))

    stream = model.stream(LONG, temperature=1.0, seed=1)
    cancelled_at(stuck, stream)

    assert stuck.calls == 2
    assert draft.states[0].extended == [PREFILL_CHUNK], "it reads in chunks"
    assert draft.states[0].closed
    assert engine.states[0].closed


def test_a_verification_that_is_under_way() -> None:
    copy = "one two three four five six seven eight nine ten "
    verified: list[int] = []
    engine = FakeEngine((2 * copy).encode())
    plain = fake_model(engine).respond("Count twice.", speculate="lookup")
    assert plain.receipt.accepted_tokens > 0
    drafted = next(i for i, count in enumerate(engine.states[0].extended[1:], 2) if count > 1)

    stuck = Stuck(drafted)
    engine = FakeEngine((2 * copy).encode(), before_extend=stuck)
    stream = fake_model(engine).stream("Count twice.", speculate="lookup")
    cancelled_at(stuck, stream)

    assert stuck.calls == drafted
    verified += stream.reply.tokens
    assert bytes(verified) == (2 * copy).encode()[: len(verified)]
    assert engine.states[0].closed


def test_a_cancel_before_the_first_piece_reads_no_prefix(tmp_path: Path) -> None:
    prefixes = PrefixCache(tmp_path, min_tokens=8)
    model = fake_model(FakeEngine(), prefix_cache=prefixes)
    model.cache_prefix("A long beginning of it.")
    stream = model.stream("A long beginning of it. And more.")
    stream.cancel()
    assert list(stream) == []
    assert stream.reply.receipt.cached_tokens == 0


def test_a_stream_that_is_dropped() -> None:
    engine = FakeEngine(b"x" * 4000)
    model = fake_model(engine)

    unread = model.stream("Hi")
    del unread
    assert engine.states[0].closed

    stream = model.stream("Hi")
    next(stream)
    del stream
    assert engine.states[1].closed
    assert len(engine.states[1].extended) < 5

    chat = model.chat()
    for _ in chat.stream("Hi"):
        break
    assert chat.messages == []
    assert chat.respond("Hi", max_tokens=3).text == "xxx"


def test_a_stream_that_the_garbage_collector_finds() -> None:
    engine = FakeEngine(b"x" * 4000)
    model = fake_model(engine)
    stream = model.stream("Hi", deadline=3600)
    next(stream)
    timers = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
    assert len(timers) == 1
    knot = [stream]
    knot.append(knot)  # type: ignore[arg-type]
    del stream, knot
    gc.collect()

    assert engine.states[0].closed
    timers[0].join(30)
    assert not timers[0].is_alive(), "nobody waits for the deadline of an answer that is gone"
    assert model.respond("Hi", max_tokens=2).text == "xx"


def test_no_clock_runs_after_an_answer_or_without_a_deadline() -> None:
    model = fake_model()

    def timers() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if isinstance(t, threading.Timer)]

    stream = model.stream("Hi")
    next(stream)
    assert timers() == []
    stream.close()
    reply = model.respond("Hi", deadline=3600)
    assert reply.finish_reason == "stop"
    gc.collect()
    until(lambda: timers() == [])


async def test_a_task_that_is_cancelled_ends_the_call_under_way() -> None:
    stuck = Stuck(1)
    engine = FakeEngine(before_extend=stuck)
    task = asyncio.create_task(fake_model(engine).arespond(LONG))
    while not stuck.reached.is_set():
        await asyncio.sleep(0.001)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert engine.states[0].extended == []
    assert engine.states[0].closed


async def test_an_async_stream_that_is_dropped() -> None:
    engine = FakeEngine(b"x" * 4000)
    model = fake_model(engine)
    unread = model.astream("Hi", speculate="off")
    del unread
    stream = model.astream("Hi", speculate="off")
    await stream.__anext__()
    del stream
    while not all(state.closed for state in engine.states):
        await asyncio.sleep(0.001)
    assert len(engine.states) == 2
    assert model.respond("Hi", max_tokens=2).text == "xx"


async def test_more_tasks_than_a_thread_pool_has_threads() -> None:
    """Each waits where its priority counts, and can be cancelled there."""
    entered, proceed = threading.Event(), threading.Event()

    def hold(state: FakeDecodeState) -> None:
        if state is engine.states[0]:
            entered.set()
            assert proceed.wait(30)

    engine = FakeEngine(before_extend=hold)
    model = fake_model(engine)
    tasks = [asyncio.create_task(model.arespond("first"))]
    while not entered.is_set():
        await asyncio.sleep(0.001)
    tasks += [asyncio.create_task(model.arespond(f"Hi {n}")) for n in range(50)]
    while model.runtime.scheduler.waiting < 50:
        await asyncio.sleep(0.001)
    for task in tasks[1::2]:
        task.cancel()
    gone = await asyncio.gather(*tasks[1::2], return_exceptions=True)
    assert all(isinstance(error, asyncio.CancelledError) for error in gone)
    assert not proceed.is_set()
    assert model.runtime.scheduler.waiting == 25
    proceed.set()
    replies = await asyncio.gather(*tasks[::2])
    assert [reply.text for reply in replies] == ["Hello there."] * 26
    assert sum(bool(state.extended) for state in engine.states) == 26


def test_remembering_waits_its_turn(tmp_path: Path) -> None:
    engine = FakeEngine()
    model = fake_model(engine, prefix_cache=PrefixCache(tmp_path, min_tokens=8))
    model.runtime.scheduler.acquire()
    kept: list[int] = []
    thread = threading.Thread(
        target=lambda: kept.append(model.cache_prefix("A document.")), daemon=True
    )
    thread.start()
    until(lambda: model.runtime.scheduler.waiting == 1)
    assert engine.states[0].extended == []
    model.runtime.scheduler.release()
    thread.join(30)
    assert not thread.is_alive()
    assert engine.states[0].extended == kept
    model.runtime.scheduler.acquire()  # it has left


def test_the_receipt_tells_waiting_from_computing() -> None:
    entered, proceed = threading.Event(), threading.Event()

    def hold(state: FakeDecodeState) -> None:
        if state is engine.states[0]:
            entered.set()
            assert proceed.wait(30)

    engine = FakeEngine(before_extend=hold)
    model = fake_model(engine)
    first, second = (model.stream(prompt, max_tokens=1) for prompt in ("first", "second"))
    threads = [threading.Thread(target=list, args=(s,), daemon=True) for s in (first, second)]
    threads[0].start()
    assert entered.wait(30)
    threads[1].start()
    until(lambda: model.runtime.scheduler.waiting == 1)
    threading.Event().wait(0.1)
    proceed.set()
    for thread in threads:
        thread.join(30)

    mine = second.reply.receipt
    assert mine.queue_seconds >= 0.1
    assert mine.time_to_first_token is not None
    # If the wait were in the prefill as well, the two would be more than the whole.
    assert mine.queue_seconds + mine.prefill_seconds <= mine.time_to_first_token + 1e-6
    assert f"waited {mine.queue_seconds:.2f} s" in mine.line()


def test_an_answer_alone_waits_for_nobody() -> None:
    receipt = fake_model().respond("Hi").receipt
    assert receipt.queue_seconds == receipt.paused_seconds == 0
    assert "waited" not in receipt.line()


def test_an_answer_asked_for_after_its_deadline_computes_nothing() -> None:
    engine = FakeEngine()
    model = fake_model(engine)
    request = Request([], Options(deadline=0.5), lambda messages, specs: [65, 2], started=-1.0)
    generation = model.runtime.generate(engine.new_state(), request)
    assert list(generation) == []
    assert generation.finish is not None
    assert generation.finish.reason == "deadline"
    assert engine.states[0].extended == []
