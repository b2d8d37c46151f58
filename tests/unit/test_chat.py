from __future__ import annotations

import asyncio
import time

import pytest

from edgesdk.errors import (
    ContextOverflow,
    EmptyPrompt,
    EngineError,
    InvalidOption,
    RequestError,
)
from tests.support.fake_engine import FakeDecodeState, FakeEngine, fake_model


def _said(*turns: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def test_turns_join_the_conversation_and_reuse_its_cache() -> None:
    engine = FakeEngine(b"Yes.")
    chat = fake_model(engine).chat(system="Be brief.")
    first = chat.respond("One?")
    second = chat.respond("Two?")

    system = {"role": "system", "content": "Be brief."}
    assert chat.messages == [system, *_said("One?", "Yes.", "Two?", "Yes.")]
    assert len(engine.states) == 1
    # All of the first turn but its end token, which was chosen and not computed.
    held = first.receipt.prompt_tokens + first.receipt.output_tokens
    assert second.receipt.cached_tokens == held
    assert bytes(engine.states[0].tokens).startswith(b"system: Be brief.\nuser: One?\n\x02Yes.\x03")


def test_the_cache_is_reused_as_far_as_the_answers_tokens_come_back() -> None:
    engine = FakeEngine(b"a\xffb")
    chat = fake_model(engine).chat()
    first = chat.respond("One?")

    second = chat.respond("Two?")

    # The byte that is no text became U+FFFD in the history.
    assert first.text == "a\ufffdb"
    assert second.receipt.cached_tokens == first.receipt.prompt_tokens + 1


def test_a_chat_goes_back_to_an_earlier_turn_and_keeps_its_cache() -> None:
    engine = FakeEngine(b"Yes.")
    chat = fake_model(engine).chat(system="Be brief.")
    first = chat.respond("One?")
    for question in ("Two?", "Three?"):
        chat.respond(question)

    chat.rewind(1)

    assert chat.messages[1:] == _said("One?", "Yes.")
    held = first.receipt.prompt_tokens + first.receipt.output_tokens
    assert chat.respond("Other?").receipt.cached_tokens >= held
    assert len(engine.states) == 1
    chat.rewind(0)
    assert len(chat.messages) == 1
    with pytest.raises(InvalidOption, match="has 0 turns"):
        chat.rewind(1)


def test_messages_that_were_said_elsewhere_are_gone_on_with() -> None:
    engine = FakeEngine(b"Yes.")
    chat = fake_model(engine).chat(system="Be brief.")
    chat.add_messages(_said("One?", "No."))
    chat.respond("Two?")
    assert chat.messages[1:] == _said("One?", "No.", "Two?", "Yes.")
    assert b"One?" in bytes(engine.states[0].tokens)
    with pytest.raises(RequestError, match="one system message"):
        chat.add_messages([{"role": "system", "content": "Be long."}])
    with pytest.raises(RequestError, match="not a message"):
        chat.add_messages(["Hi"])  # type: ignore[list-item]


@pytest.mark.parametrize("how", ["cancel", "close", "leave"])
def test_a_turn_that_was_stopped_leaves_the_history_as_it_was(how: str) -> None:
    chat = fake_model().chat()
    chat.respond("One?")
    stream = chat.stream("Two?")
    next(stream)
    if how == "cancel":
        stream.cancel()
        list(stream)
    elif how == "close":
        stream.close()
    else:
        del stream

    assert chat.messages == _said("One?", "Hello there.")
    assert chat.respond("Three?").receipt.cached_tokens > 20
    assert chat.messages == _said("One?", "Hello there.", "Three?", "Hello there.")


def test_a_turn_that_failed_leaves_the_history_and_drops_the_cache() -> None:
    failing = [False]

    def fail(state: FakeDecodeState) -> None:
        if failing[0]:
            raise EngineError("broken")

    engine = FakeEngine(before_extend=fail)
    chat = fake_model(engine).chat()
    chat.respond("One?")
    failing[0] = True
    with pytest.raises(EngineError):
        chat.respond("Two?")
    failing[0] = False

    assert chat.messages == _said("One?", "Hello there.")
    assert chat.respond("Three?").receipt.cached_tokens == 0
    assert engine.states[0].closed


def test_an_answer_cut_by_max_tokens_or_a_deadline_joins_the_history() -> None:
    def wait(state: FakeDecodeState) -> None:
        assert not state.extended or state.interrupted.wait(30)

    chat = fake_model().chat()
    chat.respond("One?", max_tokens=3)
    slow = fake_model(FakeEngine(before_extend=wait)).chat()
    reply = slow.respond("One?", deadline=0.5)

    assert chat.messages == _said("One?", "Hel")
    assert slow.messages == _said("One?", reply.text)


def test_asking_while_an_answer_is_under_way_is_an_error() -> None:
    chat = fake_model().chat()
    stream = chat.stream("One?")
    next(stream)

    for forbidden in (lambda: chat.stream("Two?"), chat.reset, chat.close):
        with pytest.raises(RequestError, match="still answering"):
            forbidden()
    list(stream)
    assert chat.respond("Two?").text == "Hello there."


def test_a_refused_turn_does_not_block_the_next() -> None:
    chat = fake_model(FakeEngine(context_length=60)).chat()

    with pytest.raises(EmptyPrompt):
        chat.respond(" ")
    with pytest.raises(ContextOverflow):
        chat.respond("x" * 100)
    assert chat.respond("One?").text == "Hello there."
    assert chat.messages == _said("One?", "Hello there.")


def test_a_conversation_that_outgrows_the_context_is_refused_not_cut() -> None:
    chat = fake_model(FakeEngine(context_length=60)).chat()
    chat.respond("One?")

    with pytest.raises(ContextOverflow, match="Take out"):
        chat.respond("x" * 30)
    assert chat.messages == _said("One?", "Hello there.")


def test_reset_forgets_the_turns_and_keeps_the_system_message() -> None:
    chat = fake_model().chat(system="Be brief.")
    chat.respond("One?")
    chat.reset()

    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert chat.respond("Two?").receipt.cached_tokens == len("system: Be brief.\nuser: ")


def test_messages_are_a_copy() -> None:
    chat = fake_model().chat()
    chat.respond("One?")
    chat.messages[0]["content"] = "changed"
    chat.messages.clear()

    assert chat.messages == _said("One?", "Hello there.")


def test_closing_frees_the_cache() -> None:
    engine = FakeEngine()
    with fake_model(engine).chat() as chat:
        chat.respond("One?")
    chat.close()

    assert engine.states[0].closed
    assert chat.messages == _said("One?", "Hello there.")


async def test_turns_in_tasks_join_the_conversation_unless_cancelled() -> None:
    def slowly(state: FakeDecodeState) -> None:
        time.sleep(0.002)

    engine = FakeEngine(b"x" * 1000, before_extend=slowly)
    chat = fake_model(engine).chat()
    task = asyncio.create_task(chat.arespond("One?"))
    while not engine.states or len(engine.states[0].extended) < 3:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert chat.messages == []

    engine.answer = b"Yes."
    assert (await chat.arespond("Two?")).text == "Yes."
    assert [piece async for piece in chat.astream("Three?")] == ["Y", "e", "s", "."]
    assert chat.messages == _said("Two?", "Yes.", "Three?", "Yes.")
