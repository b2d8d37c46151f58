"""Reasoning is a part of its own, from the template to the reply."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import BaseModel
from support.reasoning_models import OPENED, SWITCHED, reasoning_model
from support.script_engine import call

from edgesdk.errors import IncompleteStructure, InvalidOption
from edgesdk.reply import ReasoningDelta

THOUGHT = "<think>\nTwo and two.\n</think>\n\nFour."
LONG = "One plus one is two. Then add two more."


def test_the_reply_has_the_reasoning_apart() -> None:
    model, _ = reasoning_model(THOUGHT)
    reply = model.respond("2+2?")
    assert (reply.text, reply.reasoning) == ("Four.", "Two and two.")
    receipt = reply.receipt
    assert receipt.reasoning_tokens == len("<think>\nTwo and two.\n</think>")
    assert receipt.output_tokens == len(THOUGHT)
    assert 0 < receipt.reasoning_seconds <= receipt.decode_seconds + 0.1
    assert not receipt.ended_in_reasoning
    assert reply.message["reasoning_content"] == "Two and two."


def test_a_stream_gives_the_answer_and_its_parts_have_the_reasoning() -> None:
    model, _ = reasoning_model(THOUGHT)
    assert "".join(model.stream("2+2?")) == "Four."
    with model.stream("2+2?").parts() as parts:
        listed = list(parts)
    reasoning = [part for part in listed if isinstance(part, ReasoningDelta)]
    assert "".join(part.text for part in reasoning) == "Two and two."
    assert listed[: len(reasoning)] == reasoning, "the reasoning comes first"
    assert "".join(part for part in listed if isinstance(part, str)) == "Four."
    assert parts.reply.text == "Four."


def test_an_asynchronous_stream_has_its_parts_too() -> None:
    model, _ = reasoning_model(THOUGHT)

    async def texts() -> tuple[str, str]:
        async with model.astream("2+2?").parts() as parts:
            listed = [part async for part in parts]
        reasoning = (part.text for part in listed if isinstance(part, ReasoningDelta))
        return "".join(reasoning), "".join(part for part in listed if isinstance(part, str))

    assert asyncio.run(texts()) == ("Two and two.", "Four.")


def test_a_template_may_open_the_reasoning_in_the_prompt() -> None:
    model, _ = reasoning_model("Two and two.\n</think>\n\nFour.", template=OPENED)
    # The byte that opens answers ends the prompt, and shows as nothing.
    reply = model.respond("2+2?")
    assert (reply.text, reply.reasoning) == ("Four.", "Two and two.")


def test_a_text_that_is_continued_has_no_reasoning() -> None:
    model, _ = reasoning_model(THOUGHT)
    assert model.complete("\x02").text == THOUGHT


def test_the_switch_of_the_template_is_used() -> None:
    model, engine = reasoning_model("Four.")
    for level in ("auto", "off", "high"):
        assert model.respond("2+2?", reasoning=level).text == "Four."
    auto, off, high = engine.prompts
    assert off == auto.replace("\x02", "<think>\n\n</think>\n\n\x02")
    assert high == auto


def test_a_model_that_cannot_do_without_says_so() -> None:
    model, _ = reasoning_model("Hm</think>Four.", template=OPENED)
    with pytest.raises(InvalidOption, match="no switch"):
        model.respond("2+2?", reasoning="off")
    assert model.respond("2+2?", reasoning="high").text == "Four."


def test_a_model_that_does_not_reason_refuses_an_effort() -> None:
    model, _ = reasoning_model("Four.", template="{{ messages[0].content }}\x02")
    assert model.respond("2+2?", reasoning="off").text == "Four."
    with pytest.raises(InvalidOption, match="does not reason"):
        model.respond("2+2?", reasoning="low")


def test_an_answer_that_ends_in_its_reasoning_is_no_answer() -> None:
    model, _ = reasoning_model(f"<think>{LONG}</think>Four.")
    chat = model.chat()
    reply = chat.respond("2+2?", max_tokens=19)
    assert (reply.text, reply.finish_reason) == ("", "length")
    assert reply.receipt.ended_in_reasoning
    assert reply.reasoning == LONG[:12]
    assert chat.messages == [], "there is nothing to go on with"


def test_stop_texts_count_in_the_answer_alone() -> None:
    model, _ = reasoning_model("<think>Two. And two.</think>Four. Yes.")
    reply = model.respond("2+2?", stop=["."])
    assert (reply.text, reply.reasoning) == ("Four", "Two. And two.")


def test_reasoning_is_closed_at_its_limit() -> None:
    # The engine writes its script whatever was forced, so the answer goes on from there.
    model, _ = reasoning_model(f"{LONG}</think>Four.", template=OPENED)
    reply = model.respond("2+2?", max_reasoning_tokens=10)
    assert reply.reasoning == LONG[:10]
    assert reply.receipt.reasoning_tokens == 10 + len("</think>")
    assert reply.text == LONG[18:] + "</think>Four."


def test_reasoning_that_goes_in_a_cycle_ends_the_answer() -> None:
    model, _ = reasoning_model("<think>" + "Wait, I must think again. " * 40)
    reply = model.respond("2+2?")
    assert reply.finish_reason == "repetition"
    assert (reply.text, reply.receipt.ended_in_reasoning) == ("", True)
    assert reply.reasoning == "Wait, I must think again."


def test_cycles_are_looked_for_in_the_answer_by_itself() -> None:
    # In a block of code a cycle needs more turns; one that the reasoning left open is not its.
    model, _ = reasoning_model("<think>```\nx = 1</think>" + "It is a city. " * 20)
    reply = model.respond("What is Paris?")
    assert (reply.finish_reason, reply.text.strip()) == ("repetition", "It is a city.")
    assert reply.reasoning == "```\nx = 1"


def test_earlier_reasoning_is_left_out_as_the_template_wants() -> None:
    model, engine = reasoning_model(THOUGHT, "<think>Again</think>Five.")
    chat = model.chat()
    chat.respond("2+2?")
    reply = chat.respond("and 1?")
    assert "Two and two." not in engine.prompts[1]
    assert chat.messages[1]["reasoning_content"] == "Two and two."
    # What the KV cache holds up to the reasoning is used; the answer and the question are computed.
    first, second = engine.prompts
    assert reply.receipt.cached_tokens == len(first)
    assert reply.receipt.prompt_tokens == len(second) == len(f"{first}Four.\x03user: and 1?\n\x02")


def test_where_the_template_keeps_it_nothing_is_computed_again() -> None:
    kept = SWITCHED.replace(" and loop.index0 > ns.last", "")
    model, engine = reasoning_model(THOUGHT, "Five.", template=kept)
    chat = model.chat()
    chat.respond("2+2?")
    reply = chat.respond("and 1?")
    assert reply.receipt.cached_tokens == len(engine.prompts[0] + THOUGHT)


def test_reasoning_stays_within_a_turn_that_calls_tools() -> None:
    def add(left: int, right: int) -> int:
        """Add two numbers."""
        return left + right

    call = '<tool_call>\n{"name": "add", "arguments": {"left": 2, "right": 2}}\n</tool_call>'
    model, engine = reasoning_model(f"<think>\nI add.\n</think>\n\n{call}", "Four.")
    chat = model.chat()
    result = chat.act("2+2?", [add])
    assert result.reply.text == "Four."
    assert "\x02<think>\nI add.\n</think>\n\n<tool_call>" in engine.prompts[1]


class Sum(BaseModel):
    total: int


@pytest.mark.parametrize(
    ("template", "answer", "reasoning"),
    [
        (SWITCHED, '<think>Hm {"a</think>{"total":4}', 'Hm {"a'),
        (OPENED, 'Hm {"a</think>{"total":4}', 'Hm {"a'),
        (SWITCHED, '{"total":4}', ""),
    ],
)
def test_a_format_holds_for_the_answer_after_the_reasoning(
    template: str, answer: str, reasoning: str
) -> None:
    model, _ = reasoning_model(answer, template=template)
    reply = model.respond("2+2?", schema=Sum)
    assert (reply.parsed, reply.text) == (Sum(total=4), '{"total":4}')
    assert reply.reasoning == reasoning


def test_a_format_holds_against_the_models_wishes() -> None:
    # Written after the reasoning: words, of which only a value is let through.
    model, _ = reasoning_model("<think>Hm</think>four!")
    assert model.respond("2+2?", choices=["four", "five"]).text == "four"


def test_reasoning_that_is_too_long_for_a_format_leaves_it_incomplete() -> None:
    model, _ = reasoning_model("<think>Hm, hm, hm</think>four")
    with pytest.raises(IncompleteStructure, match="tokens ran out"):
        model.respond("2+2?", choices=["four", "five"], max_tokens=12)


def test_a_model_with_a_format_does_not_end_in_its_reasoning() -> None:
    # The script ends there; what is likeliest next is another byte, until the room is full.
    model, _ = reasoning_model("<think>Hm")
    with pytest.raises(IncompleteStructure, match="tokens ran out"):
        model.respond("2+2?", choices=["four", "five"], max_tokens=30)


def test_a_demanded_call_comes_after_the_reasoning() -> None:
    def add(left: int, right: int) -> int:
        """Add two numbers."""
        return left + right

    written = call("add", left=2, right=2)
    opened = SWITCHED.replace("\x02{% endif %}", "<think>\n\x02{% endif %}")
    model, _ = reasoning_model(f"I add.</think>{written}", template=opened)
    reply = model.respond("2+2?", tools=[add], tool_choice="required")
    assert [each.arguments for each in reply.tool_calls] == [{"left": 2, "right": 2}]
    assert (reply.text, reply.reasoning) == (written, "I add.")
    assert reply.message["content"] == ""
