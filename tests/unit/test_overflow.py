"""What a chat does when its context is full, on a fake engine of 400 tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_engine import FakeDecodeState, FakeEngine, fake_model

from edgesdk.chat import Chat
from edgesdk.errors import ContextOverflow, DeadlineExceeded
from edgesdk.overflow import drop_oldest, prompt_limit

CONTEXT, QUESTION = 400, "q" * 40
# "user: " and "\n" around a question; an answer of 12 bytes between two control bytes.
TURN = 6 + 40 + 1 + 14
SYSTEM = "system: Be kind.\n"


def _chat(policy: str, engine: FakeEngine | None = None) -> Chat:
    engine = engine or FakeEngine(context_length=CONTEXT)
    return fake_model(engine).chat("Be kind.", overflow=policy)  # type: ignore[arg-type]


def _fill(chat: Chat, turns: int) -> None:
    for _ in range(turns):
        assert chat.respond(QUESTION, max_tokens=20).receipt.overflow is None


def test_error_is_the_default_and_leaves_the_chat_usable() -> None:
    chat = fake_model(FakeEngine(context_length=CONTEXT)).chat("Be kind.")
    _fill(chat, 5)
    before = chat.messages
    with pytest.raises(ContextOverflow):
        chat.respond("x" * 120)
    assert chat.messages == before
    assert chat.respond("x").text == "Hello there."


def test_oldest_turns_go_as_a_whole_and_the_receipt_says_so() -> None:
    chat = _chat("drop_oldest_turns")
    _fill(chat, 5)
    reply = chat.respond(QUESTION, max_tokens=40)
    record = reply.receipt.overflow
    assert record is not None
    assert record.policy == "drop_oldest_turns"
    assert record.tokens_before == len(SYSTEM) + 6 * TURN - 13
    # 360 tokens may be used; a quarter of them is made free at once.
    assert record.turns_dropped == 2
    assert record.tokens_after == len(SYSTEM) + 4 * TURN - 13 == reply.receipt.prompt_tokens
    assert "2 turns dropped" in reply.receipt.line()
    messages = chat.messages
    assert messages[0] == {"role": "system", "content": "Be kind."}
    assert [m["role"] for m in messages[1:]] == ["user", "assistant"] * 4
    # There is room again for a while.
    assert chat.respond(QUESTION, max_tokens=40).receipt.overflow is None


def test_a_long_chat_never_ends() -> None:
    for policy in ("drop_oldest_turns", "summarize"):
        chat = _chat(policy)
        for _ in range(40):
            reply = chat.respond(QUESTION, max_tokens=20)
            assert reply.text == "Hello there."
            assert reply.receipt.prompt_tokens <= CONTEXT - 20
        assert chat.messages[0]["role"] == "system"


def test_a_cancelled_turn_drops_nothing() -> None:
    for policy in ("drop_oldest_turns", "summarize"):
        chat = _chat(policy)
        _fill(chat, 5)
        before = chat.messages
        with chat.stream(QUESTION, max_tokens=40) as stream:
            next(stream)
        assert chat.messages == before
        chat.stream(QUESTION, max_tokens=40).close()
        assert chat.messages == before
        assert chat.respond(QUESTION, max_tokens=40).receipt.overflow is not None


def test_a_summary_takes_the_place_of_the_oldest_turns() -> None:
    engine = FakeEngine(b"It was about q.", context_length=1000)
    chat = _chat("summarize", engine)
    for _ in range(3):
        chat.respond("q" * 200, max_tokens=30)
    reply = chat.respond("q" * 200, max_tokens=250)
    record = reply.receipt.overflow
    assert record is not None
    assert (record.policy, record.turns_dropped) == ("summarize", 2)
    assert record.summary_tokens == len("It was about q.")
    assert record.tokens_after == reply.receipt.prompt_tokens < record.tokens_before
    assert "2 turns summarized" in reply.receipt.line()
    system, summary, noted, *rest = chat.messages
    assert system == {"role": "system", "content": "Be kind."}
    assert summary["role"] == "user"
    assert summary["content"].endswith("It was about q.")
    assert noted["role"] == "assistant"
    assert [m["content"] for m in rest] == ["q" * 200, "It was about q."] * 2


def test_the_summary_is_of_the_turns_in_the_cache() -> None:
    engine = FakeEngine(b"It was about q.", context_length=1000)
    chat = _chat("summarize", engine)
    for _ in range(3):
        chat.respond("q" * 200, max_tokens=30)
    calls = len(engine.states[0].extended)
    chat.respond("q" * 200, max_tokens=250)
    # The first prefill after that is of the request for a summary alone.
    assert engine.states[0].extended[calls] < 300
    # Forks that measured something are closed.
    assert [state.closed for state in engine.states].count(False) == 1


def test_a_deadline_during_the_summary() -> None:
    waits: list[int] = []

    def slow(_: FakeDecodeState) -> None:
        import time

        waits.append(1)
        if len(waits) > 60:
            time.sleep(0.05)

    engine = FakeEngine(b"It was about q.", context_length=1000, before_extend=slow)
    chat = _chat("summarize", engine)
    for _ in range(3):
        chat.respond("q" * 200, max_tokens=30)
    before = chat.messages
    waits.extend([1] * 60)
    with pytest.raises(DeadlineExceeded):
        chat.respond("q" * 200, max_tokens=250, deadline=0.1)
    assert chat.messages == before


def test_an_empty_summary_is_left_out() -> None:
    engine = FakeEngine(b"", context_length=CONTEXT)
    chat = _chat("summarize", engine)
    for _ in range(8):
        reply = chat.respond(QUESTION, max_tokens=20)
    assert reply.receipt.overflow is None or reply.receipt.overflow.summary_tokens == 0
    assert all("Summary" not in message["content"] for message in chat.messages)


def test_a_question_that_is_too_long_by_itself() -> None:
    for policy in ("drop_oldest_turns", "summarize"):
        chat = _chat(policy)
        _fill(chat, 2)
        before = chat.messages
        with pytest.raises(ContextOverflow):
            chat.respond("x" * CONTEXT)
        assert chat.messages == before
        assert chat.respond("x").text == "Hello there."


@given(st.integers(2, 10**6), st.none() | st.integers(1, 10**6))
def test_a_prompt_may_always_have_three_quarters(context: int, max_tokens: int | None) -> None:
    limit = prompt_limit(context, max_tokens)
    assert 3 * context // 4 <= limit <= context


@given(st.lists(st.integers(1, 50), max_size=12), st.integers(0, 400))
def test_as_few_turns_go_as_possible(sizes: list[int], target: int) -> None:
    turns = [
        message
        for size in sizes
        for message in (
            {"role": "user", "content": "u" * size},
            {"role": "assistant", "content": "a"},
            {"role": "tool", "content": "t"},
        )
    ]

    def tokens(history: list[dict[str, str]]) -> int:
        return sum(len(message["content"]) for message in history)

    short = drop_oldest(turns, tokens, target)
    assert [m for turn in short.dropped for m in turn] + short.turns == turns
    assert all(turn[0]["role"] == "user" and len(turn) == 3 for turn in short.dropped)
    assert tokens(short.turns) <= target or not short.turns
    if short.dropped:
        assert tokens([*short.dropped[-1], *short.turns]) > target
