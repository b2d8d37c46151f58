"""Tools in a full context, an unhelpful template, a broken engine."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.chat import Chat
from edgesdk.errors import (
    RequestError,
)
from edgesdk.overflow import drop_oldest
from tests.support.fake_engine import TEMPLATE, FakeDecodeState, fake_model
from tests.support.script_engine import HERMES_TEMPLATE, ScriptEngine, call, script_chat


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


SUM = call("add", a=2, b=3)
CONTEXT = 1500


def _full(policy: Any, *answers: str) -> tuple[Chat, list[str]]:
    return script_chat(*answers, overflow=policy, context_length=CONTEXT)


def _orphans(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known: set[str] = set()
    orphans = []
    for message in messages:
        known |= {each["id"] for each in message.get("tool_calls", [])}
        if message["role"] == "tool" and message["tool_call_id"] not in known:
            orphans.append(message)
    return orphans


@pytest.mark.parametrize("policy", ["drop_oldest_turns", "summarize"])
def test_a_loop_that_fills_the_context_drops_whole_turns_before_it(policy: Any) -> None:
    def say(text: str) -> str:
        return text

    old = call("say", text="o" * 150)
    new = call("say", text="n" * 120)
    summary = ["It was about o."] if policy == "summarize" else []
    chat, prompts = _full(policy, old, "Old.", new, new, *summary, "New.")
    chat.act("What is old?", [say], max_tokens=300)
    acted = chat.act("What is new?", [say], max_tokens=300)

    records = [reply.receipt.overflow for reply in acted.replies]
    [record] = [record for record in records if record is not None]
    assert (record.policy, record.turns_dropped) == (policy, 1)
    assert record.tokens_after < record.tokens_before
    assert acted.reply.text == "New."
    assert "oooo" not in prompts[-1]
    assert _orphans(chat.messages) == []
    assert prompts[-1].count("say gave nnn") == 2
    kept = [m["content"] for m in chat.messages if m["role"] == "user"]
    assert "What is old?" not in kept
    assert kept[-1] == "What is new?"
    if policy == "summarize":
        assert kept[0].endswith("It was about o.")


def test_a_loop_that_does_not_fit_by_itself_is_an_error_and_forgets_nothing() -> None:
    def flood() -> str:
        return "x" * CONTEXT

    chat, _ = _full("drop_oldest_turns", "Hello.", call("flood"), "Hello.")
    chat.respond("Hi.")
    before = chat.messages
    with pytest.raises(RequestError, match="tokens"):
        chat.act("?", [flood], max_tokens=200)
    assert chat.messages == before
    assert chat.respond("?").text == "Hello."


@given(
    turns=st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=6),
    target=st.integers(0, 60),
)
def test_no_result_ever_stays_without_its_call(turns: list[list[int]], target: int) -> None:
    messages: list[dict[str, Any]] = []
    for number, rounds in enumerate(turns):
        messages.append({"role": "user", "content": f"{number}"})
        for place, count in enumerate(rounds):
            keys = [f"{number}.{place}.{each}" for each in range(count)]
            messages.append({"role": "assistant", "tool_calls": [{"id": key} for key in keys]})
            messages += [{"role": "tool", "tool_call_id": key} for key in keys]
        messages.append({"role": "assistant", "content": "Done."})
    short = drop_oldest(messages, len, target)
    assert _orphans(short.turns) == []
    assert len(short.turns) <= max(target, 0) or not short.turns
    assert not short.turns or short.turns[0]["role"] == "user"


def test_a_template_without_tools_reads_results_as_words_of_the_user() -> None:
    chat, prompts = script_chat(SUM, "It is 5.", template=TEMPLATE)
    [asked] = chat.respond("?", tools=[add]).tool_calls
    chat.add_tool_result(asked, 5)
    chat.respond(tools=[add])
    assert prompts[1].endswith(f"{SUM}\x03user: <tool_response>\n5\n</tool_response>\n\x02")
    assert chat.messages[-2]["role"] == "tool"


def test_a_broken_engine_leaves_a_waiting_chat_as_it_was() -> None:
    engine = ScriptEngine((SUM, "It is 5."))
    chat = fake_model(engine, template=HERMES_TEMPLATE).chat()
    [asked] = chat.respond("?", tools=[add]).tool_calls
    chat.add_tool_result(asked, 5)
    before = chat.messages

    def broken(state: FakeDecodeState) -> None:
        raise RuntimeError("broken")

    engine.before_extend, working = broken, engine.before_extend
    with pytest.raises(RuntimeError):
        chat.respond(tools=[add])
    assert chat.messages == before
    engine.before_extend = working
    assert chat.respond(tools=[add]).text == "It is 5."
