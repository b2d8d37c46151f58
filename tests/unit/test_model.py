from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgesdk.errors import (
    ContextOverflow,
    DeadlineExceeded,
    EmptyPrompt,
    EngineError,
    InvalidOption,
    RequestError,
    TemplateError,
)
from tests.support.fake_engine import FakeDecodeState, FakeEngine, fake_model


def _slowly(state: FakeDecodeState) -> None:
    time.sleep(0.002)


def test_a_reply_has_text_tokens_and_a_receipt() -> None:
    reply = fake_model(FakeEngine(b"Hello.")).respond("Hi")

    assert reply.text == "Hello."
    assert reply.tokens == tuple(b"Hello.")
    assert reply.finish_reason == reply.receipt.finish_reason == "stop"
    receipt = reply.receipt
    assert (receipt.route, receipt.engine, receipt.device) == ("local", "fake 1", "cpu")
    assert (receipt.prompt_tokens, receipt.cached_tokens, receipt.output_tokens) == (10, 0, 6)
    assert receipt.load_seconds == 0.25
    assert receipt.time_to_first_token is not None
    assert receipt.tokens_per_second == pytest.approx(6 / receipt.decode_seconds)
    assert receipt.peak_memory_bytes is not None
    assert receipt.peak_memory_bytes > 10_000_000


def test_the_receipts_line_says_what_was_not_measured() -> None:
    line = fake_model(FakeEngine(b"a")).respond("Hi", max_tokens=1).receipt.line()

    assert "10 tokens in, 1 out" in line
    assert "speed not measured" in line
    assert "ended by length" in line


def test_a_stream_gives_pieces_and_then_the_reply() -> None:
    stream = fake_model(FakeEngine("Grüß".encode())).stream("Hi")
    with pytest.raises(RequestError, match="not read to its end"):
        _ = stream.reply

    assert list(stream) == ["G", "r", "ü", "ß"]
    assert stream.reply.text == "Grüß"


def test_messages_are_a_prompt_too() -> None:
    engine = FakeEngine()
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
        {"role": "user", "content": "Again"},
    ]

    fake_model(engine).respond(messages, max_tokens=1)

    expected = b"system: Be brief.\nuser: Hi\n\x02Yo\x03user: Again\n\x02"
    assert bytes(engine.states[0].tokens) == expected


@pytest.mark.parametrize("prompt", ["", "  \n", [], [{"role": "user", "content": " "}]])
def test_an_empty_prompt_is_refused(prompt: object) -> None:
    with pytest.raises(EmptyPrompt):
        fake_model().respond(prompt)  # type: ignore[arg-type]


@pytest.mark.parametrize("message", ["x", {"content": "x"}, {"role": "user"}, {"role": 1}])
def test_what_is_no_message_is_refused(message: object) -> None:
    with pytest.raises(RequestError, match=r"messages\[1\]"):
        fake_model().respond([{"role": "user", "content": "a"}, message])  # type: ignore[list-item]


def test_a_prompt_past_the_context_says_how_much_too_long_it_is() -> None:
    engine = FakeEngine(context_length=50)

    with pytest.raises(ContextOverflow, match="108 tokens; 49 fit") as caught:
        fake_model(engine).respond("x" * 100)

    assert (caught.value.tokens, caught.value.limit) == (108, 49)
    assert "Take out at least 59" in str(caught.value)
    assert all(state.closed and not state.extended for state in engine.states)


def test_more_tokens_asked_for_than_the_context_holds_ends_by_length() -> None:
    reply = fake_model(FakeEngine(b"x" * 99, context_length=20)).respond("Hi", max_tokens=99)

    assert (reply.finish_reason, len(reply.tokens)) == ("length", 10)


def test_a_wrong_option_is_refused_before_anything_runs() -> None:
    engine = FakeEngine()

    with pytest.raises(InvalidOption, match="'max_tokens'"):
        fake_model(engine).respond("Hi", max_token=3)  # type: ignore[call-arg]

    assert engine.states == []


def test_a_model_without_a_template_completes_but_does_not_chat() -> None:
    model = fake_model(FakeEngine(b"...and on"), template=None)

    with pytest.raises(TemplateError, match=r"no chat template.*complete"):
        model.respond("Hi")
    assert model.complete("Once upon a time\x02").text == "...and on"
    with pytest.raises(EmptyPrompt):
        model.complete("")


def test_tokens_are_counted_of_texts_and_of_conversations() -> None:
    model = fake_model()

    assert model.count("héllo") == 6
    assert model.count([{"role": "user", "content": "Hi"}]) == 10


def test_every_answer_frees_its_sequence() -> None:
    engine = FakeEngine()
    model = fake_model(engine)

    model.respond("Hi")
    with model.stream("Hi") as stream:
        next(stream)
    for _ in model.stream("Hi"):
        break

    assert [state.closed for state in engine.states] == [True] * 3
    assert stream.reply.finish_reason == "cancelled"
    assert stream.reply.text == "H"


def test_an_engine_failure_frees_the_sequence_and_ends_the_stream() -> None:
    def fail(state: FakeDecodeState) -> None:
        if state.extended:
            raise EngineError("broken")

    engine = FakeEngine(before_extend=fail)
    stream = fake_model(engine).stream("Hi")

    with pytest.raises(EngineError, match="broken"):
        list(stream)
    assert list(stream) == []
    assert engine.states[0].closed


def test_cancelling_from_another_thread_ends_the_stream() -> None:
    stream = fake_model(FakeEngine(b"x" * 4000, before_extend=_slowly)).stream("Hi")
    next(stream)
    threading.Thread(target=stream.cancel).start()

    rest = list(stream)

    assert len(rest) < 3999
    assert stream.reply.finish_reason == "cancelled"


def test_a_deadline_keeps_what_there_is_and_is_an_error_where_there_is_nothing() -> None:
    def wait(state: FakeDecodeState) -> None:
        assert not state.extended or state.interrupted.wait(30)

    reply = fake_model(FakeEngine(b"x" * 99, before_extend=wait)).respond("Hi", deadline=0.5)
    assert (reply.text, reply.finish_reason) == ("x", "deadline")

    late = FakeEngine(before_extend=lambda state: time.sleep(0.03))
    with pytest.raises(DeadlineExceeded):
        fake_model(late).respond("Hi", deadline=0.01)
    assert late.states[0].closed


def test_several_threads_may_ask_one_model() -> None:
    model = fake_model(FakeEngine(b"The same.", before_extend=_slowly))

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda n: model.respond(f"Hi {n}").text, range(8)))

    assert texts == ["The same."] * 8


async def test_asking_in_a_task_gives_the_same_reply() -> None:
    model = fake_model(FakeEngine("Grüß".encode()))

    reply = await model.arespond("Hi")
    pieces = [piece async for piece in model.astream("Hi")]

    assert reply.text == "".join(pieces) == "Grüß"
    assert reply.receipt.output_tokens == 6


async def test_the_event_loop_runs_while_an_answer_is_made() -> None:
    arrived = threading.Event()

    def wait_for_the_loop(state: FakeDecodeState) -> None:
        assert arrived.wait(30)

    model = fake_model(FakeEngine(before_extend=wait_for_the_loop))
    task = asyncio.create_task(model.arespond("Hi"))
    await asyncio.sleep(0.01)
    arrived.set()

    assert (await task).text == "Hello there."


async def test_cancelling_the_task_stops_the_decoding() -> None:
    engine = FakeEngine(b"x" * 4000, before_extend=_slowly)
    task = asyncio.create_task(fake_model(engine).arespond("Hi"))
    while not engine.states or len(engine.states[0].extended) < 3:
        await asyncio.sleep(0.001)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert engine.states[0].closed
    assert len(engine.states[0].extended) < 4000


async def test_leaving_an_async_stream_stops_the_decoding() -> None:
    engine = FakeEngine(b"x" * 4000, before_extend=_slowly)
    async with fake_model(engine).astream("Hi") as stream:
        async for _ in stream:
            break

    assert engine.states[0].closed
    assert stream.reply.finish_reason == "cancelled"


async def test_an_engine_failure_reaches_the_task() -> None:
    def fail(state: FakeDecodeState) -> None:
        raise EngineError("broken")

    with pytest.raises(EngineError, match="broken"):
        await fake_model(FakeEngine(before_extend=fail)).arespond("Hi")
