"""Calls that the caller runs: what comes back, what is taken, what is refused."""

from __future__ import annotations

import decimal
import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator

from edgesdk.errors import (
    EmptyPrompt,
    IncompleteStructure,
    InvalidOption,
    MissingExtra,
    RequestError,
)
from edgesdk.structured.schema_check import schema_errors
from edgesdk.tools import call_grammar
from edgesdk.tools.calls import ToolCall
from edgesdk.tools.tool_set import check_tool_calls
from tests.support.fake_engine import fake_model
from tests.support.script_engine import HERMES_TEMPLATE, ScriptEngine, call, script_chat


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def _even(text: str) -> str:
    if int(text) % 2:
        raise ValueError("odd")
    return text


EVEN = Annotated[str, AfterValidator(_even)]
SUM = call("add", a=2, b=3)
SPEC = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string"}},
            "required": ["at"],
        },
    },
}


def test_calls_come_back_and_their_results_go_on() -> None:
    chat, prompts = script_chat(SUM, "It is 5.")
    reply = chat.respond("2 + 3?", tools=[add])

    assert (reply.finish_reason, reply.receipt.finish_reason) == ("tool_calls", "stop")
    [asked] = reply.tool_calls
    assert (asked.name, asked.arguments, asked.problem) == ("add", {"a": 2, "b": 3}, None)
    assert asked.id
    assert reply.parsed is None
    assert chat.pending_calls == (asked,)
    chat.add_tool_result(asked, add(**asked.arguments))
    answer = chat.respond(tools=[add])

    assert (answer.text, answer.finish_reason, answer.tool_calls) == ("It is 5.", "stop", ())
    assert prompts[1].endswith(f"\x02{SUM}\x03add gave 5\n\x02")
    # The call was computed when it was made, and its message is written the same way.
    assert answer.receipt.cached_tokens >= len(prompts[0]) + len(SUM)
    assert [m["role"] for m in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert "look" not in prompts[0]


def test_words_before_a_call_stay_words() -> None:
    chat, prompts = script_chat(f"I look.\n{SUM}", "5")
    reply = chat.respond("?", tools=[add])

    assert reply.message["content"] == "I look."
    chat.add_tool_result(reply.tool_calls[0], 5)
    chat.respond()
    assert prompts[1].endswith(f"\x02I look.\n{SUM}\x03add gave 5\n\x02")


def test_results_may_come_in_any_order_and_are_told_in_that_of_the_calls() -> None:
    chat, prompts = script_chat(f"{SUM}\n{call('add', a=1, b=1)}", "5 and 2")
    first, second = chat.respond("?", tools=[add]).tool_calls

    assert first.id != second.id
    chat.add_tool_result(second, {"sum": 2})
    with pytest.raises(RequestError, match="result of add"):
        chat.respond(tools=[add])
    chat.add_tool_result(first, "five")
    assert chat.respond(tools=[add]).text == "5 and 2"
    assert prompts[1].endswith('add gave five\nadd gave {"sum":2}\n\x02')


def test_only_results_that_are_waited_for_are_taken() -> None:
    chat, _ = script_chat(SUM, "It is 5.")
    with pytest.raises(EmptyPrompt):
        chat.respond()
    [asked] = chat.respond("?", tools=[add]).tool_calls
    before = chat.messages
    with pytest.raises(RequestError, match="'other'"):
        chat.add_tool_result(ToolCall("add", {}, id="other"), 5)
    with pytest.raises(RequestError, match=r"chat\.add_tool_result"):
        chat.respond("Never mind.")
    assert chat.messages == before
    chat.add_tool_result(asked, 5)
    with pytest.raises(RequestError):
        chat.add_tool_result(asked, 6)
    chat.respond("So?")
    with pytest.raises(EmptyPrompt):
        chat.respond()


def test_a_question_may_come_with_the_results() -> None:
    chat, prompts = script_chat(SUM, "Five.")
    [asked] = chat.respond("?", tools=[add]).tool_calls
    chat.add_tool_result(asked, 5)
    chat.respond("In words?")
    assert prompts[1].endswith("add gave 5\nuser: In words?\n\x02")


def test_ids_differ_over_a_whole_chat() -> None:
    chat, _ = script_chat(SUM, f"{SUM}\n{SUM}", "5")
    ids = []
    for prompt in ("?", None):
        for asked in chat.respond(prompt, tools=[add]).tool_calls:
            ids.append(asked.id)
            chat.add_tool_result(asked, 5)
    assert len(set(ids)) == 3
    assert all(len(key) == 9 and key.isalnum() for key in ids)


def test_a_stream_ends_with_the_calls_and_a_cancelled_one_makes_none() -> None:
    chat, _ = script_chat(f"I add.\n{SUM}", f"I add.\n{SUM}", "{x} is no call.")
    with chat.stream("?", tools=[add]) as stream:
        next(stream)
    assert stream.reply.tool_calls == ()
    assert chat.messages == []
    with chat.stream("?", tools=[add]) as stream:
        assert "".join(stream) == "I add."
    assert len(stream.reply.tool_calls) == 1
    assert stream.reply.text == f"I add.\n{SUM}"
    chat.add_tool_result(stream.reply.tool_calls[0], 5)
    with chat.stream(tools=[add]) as stream:
        assert "".join(stream) == "{x} is no call."


def test_a_call_that_is_cut_is_an_error_and_no_call() -> None:
    chat, _ = script_chat(SUM)
    with pytest.raises(IncompleteStructure):
        chat.respond("?", tools=[add], max_tokens=len(SUM) - 12)
    assert chat.messages == []


def test_a_required_or_chosen_tool_is_called() -> None:
    wanted, _ = script_chat("No.")
    [asked] = wanted.respond("?", tools=[add], tool_choice="required", max_tokens=400).tool_calls
    assert asked.name == "add"
    assert isinstance(asked.arguments["a"], int)
    chosen, _ = script_chat(SUM)
    reply = chosen.respond("?", tools=[add, SPEC], tool_choice="look", max_tokens=400)
    assert [each.name for each in reply.tool_calls] == ["look"]


def test_a_type_that_a_schema_cannot_say_is_checked_all_the_same() -> None:
    def spend(amount: EVEN) -> str:
        return amount

    chat, prompts = script_chat(call("spend", amount="3"), "Sorry.")
    [asked] = chat.respond("?", tools=[spend]).tool_calls
    assert "amount" in str(asked.problem)
    chat.add_tool_result(asked, f"Error: {asked.problem}")
    chat.respond()
    assert "spend gave Error: invalid arguments: amount" in prompts[1]


def test_tools_may_be_described_and_run_elsewhere() -> None:
    chat, prompts = script_chat(call("look", at="door"), "Closed.")
    [asked] = chat.respond("?", tools=[SPEC]).tool_calls
    chat.add_tool_result(asked, "closed")

    assert asked.arguments == {"at": "door"}
    assert '"name": "look"' in prompts[0]
    assert chat.respond(tools=[SPEC]).text == "Closed."


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"at": 5}, "at: 5 is not of type 'string'"),
        ({}, "'at' is a required property"),
        ({"at": "door"}, None),
    ],
)
def test_calls_in_another_familys_way_are_checked_against_a_described_tool(
    arguments: dict[str, Any], problem: str | None
) -> None:
    # A fence is no mark of this family, so nothing holds what is in it.
    fenced = f"```json\n{json.dumps({'name': 'look', 'arguments': arguments})}\n```"
    chat, _ = script_chat(fenced, "Fine.")
    [asked] = chat.respond("?", tools=[SPEC]).tool_calls
    assert asked.problem == (problem and f"invalid arguments: {problem}")


def test_a_described_tool_whose_schema_cannot_be_enforced_is_refused() -> None:
    remote = {"type": "object", "properties": {"a": {"$ref": "https://example.com/a.json"}}}
    odd = {"type": "function", "function": {"name": "odd", "parameters": remote}}
    chat, _ = script_chat("Hello.")
    with pytest.raises(InvalidOption, match="'odd'"):
        chat.respond("?", tools=[odd])
    assert schema_errors(remote, {"a": 1})[0].startswith("the schema cannot be followed")
    without_schema = {"f": {"type": "function", "function": {"name": "f"}}}
    (call,) = check_tool_calls([ToolCall("f", {"a": 1})], without_schema, {}, ())
    assert call.problem == "invalid arguments: a: not an argument"


def test_a_function_whose_schema_cannot_be_enforced_is_checked_by_its_hints() -> None:
    def pay(amount: decimal.Decimal) -> str:
        return str(amount * 2)

    chat, _ = script_chat(call("pay", amount="x"), call("pay", amount="1.50"), "Paid.")
    assert [run.result for run in chat.act("?", [pay]).runs] == [
        "Error: invalid arguments: amount: Input should be a valid decimal",
        "3.00",
    ]


def test_a_model_answers_messages_with_calls_and_results() -> None:
    engine = ScriptEngine((SUM, "It is 5."))
    model = fake_model(engine, template=HERMES_TEMPLATE)
    messages: list[dict[str, Any]] = [{"role": "user", "content": "2 + 3?"}]
    reply = model.respond(messages, tools=[add])
    [asked] = reply.tool_calls
    # As OpenAI's clients have it: the arguments are a text.
    said = reply.message
    said["tool_calls"][0]["function"]["arguments"] = '{"a": 2, "b": 3}'
    result = {"role": "tool", "tool_call_id": asked.id, "name": "add", "content": ""}

    assert model.respond([*messages, said, result], tools=[add]).text == "It is 5."
    assert engine.prompts[1].endswith(f"\x02{SUM}\x03add gave \n\x02")
    assert model.count([*messages, said, result]) > model.count(messages)
    with pytest.raises(RequestError, match="no tool call"):
        model.respond([*messages, {"role": "assistant", "content": "", "tool_calls": [{}]}])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tools": [add], "schema": {"type": "object"}}, "exclude"),
        ({"tool_choice": "auto"}, "needs 'tools'"),
        ({"tools": [add], "tool_choice": "subtract"}, "'subtract'"),
        ({"tools": [add], "tool_choice": 3}, "not a text"),
        ({"tools": []}, "no tools"),
        ({"tools": add}, "not a list"),
    ],
)
def test_what_cannot_be_offered_is_refused(asked: dict[str, Any], said: str) -> None:
    chat, prompts = script_chat("Hello.")
    with pytest.raises(InvalidOption, match=said):
        chat.respond("?", **asked)
    assert prompts == []
    assert chat.respond("?").text == "Hello."


def test_without_llguidance_calls_are_read_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingExtra("llguidance", extra="structure", needed_for="A form")

    monkeypatch.setattr(call_grammar, "load_llguidance", missing)
    monkeypatch.setattr("edgesdk.structured.output_format.load_llguidance", missing)
    chat, prompts = script_chat(call("add", a="x", b=3), SUM, "It is 5.")
    acted = chat.act("?", [add])

    assert [run.failed for run in acted.runs] == [True, False]
    assert "add gave Error: invalid arguments: a: Input should be" in prompts[1]
    assert acted.reply.text == "It is 5."
    with pytest.raises(MissingExtra):
        chat.respond("?", tools=[add], tool_choice="required")


def test_a_chat_that_waits_for_results_is_saved_and_forked(tmp_path: Path) -> None:
    engine = ScriptEngine((f"{SUM}\n{call('add', a=1, b=1)}", "5 and 2", "5 and 2", "5 and 2"))
    model = fake_model(engine, template=HERMES_TEMPLATE)
    chat = model.chat("Be kind.")
    first, second = chat.respond("?", tools=[add]).tool_calls
    chat.add_tool_result(first, 5)
    twin = chat.fork()
    chat.save(tmp_path / "chat")
    restored = model.restore(tmp_path / "chat")
    for each in (chat, twin, restored):
        assert each.pending_calls == (second,)
        each.add_tool_result(second, 2)
        reply = each.respond(tools=[add])
        assert reply.text == "5 and 2"
        assert reply.receipt.cached_tokens > len(engine.prompts[0])
    assert chat.messages == twin.messages == restored.messages
    assert engine.prompts[1] == engine.prompts[2] == engine.prompts[3]


def test_a_saved_chat_with_broken_calls_is_refused(tmp_path: Path) -> None:
    model = fake_model()
    state = model.runtime.engine.new_state()
    turn = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": 3}}]}
    state.save(tmp_path / "chat", {"system": None, "turns": [turn]})
    with pytest.raises(RequestError, match="holds no chat"):
        model.restore(tmp_path / "chat")
