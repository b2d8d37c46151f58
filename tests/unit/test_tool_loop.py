"""The loop of a model and its tools, with a model that says what is written down."""

from __future__ import annotations

import json

import pytest

from edgesdk.chat import Chat
from edgesdk.errors import EngineError, RequestError, ToolRoundsExceeded
from edgesdk.tools.calls import ToolCall
from edgesdk.tools.tool_format import HERMES
from tests.support.fake_engine import TEMPLATE, FakeDecodeState, fake_model
from tests.support.script_engine import ScriptEngine, call, script_chat

WITH_TOOLS = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}\x02{{ m.content }}\x03"
    "{% elif m.role == 'tool' %}{{ m.name }} gave {{ m.content }}\n"
    "{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}\x02{% endif %}"
)


def _chat(*answers: str, template: str = WITH_TOOLS) -> tuple[Chat, list[str]]:
    return script_chat(*answers, template=template)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def fail(reason: str) -> str:
    """Fail."""
    raise LookupError(reason)


def test_results_of_calls_reach_the_model_and_then_the_answer_the_caller() -> None:
    chat, prompts = _chat(call("add", a=2, b=3), "It is 5.")
    acted = chat.act("2 + 3?", [add])

    assert acted.reply.text == "It is 5."
    [run] = acted.runs
    assert (run.call.name, run.call.arguments, run.result, run.failed) == (
        "add",
        {"a": 2, "b": 3},
        "5",
        False,
    )
    assert '"description": "Add two numbers."' in prompts[0]
    assert prompts[1].endswith("add gave 5\n\x02")
    assert [message["role"] for message in chat.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


def test_several_calls_in_one_answer_all_run_in_order() -> None:
    chat, prompts = _chat(call("add", a=1, b=1) + call("add", a=2, b=2), "2 and 4")
    acted = chat.act("?", [add])

    assert [run.result for run in acted.runs] == ["2", "4"]
    assert "add gave 2\nadd gave 4\n" in prompts[1]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (call("fail", reason="no such town"), "Error: LookupError: no such town"),
        (call("add", a="two", b=3), "Error: invalid arguments: a: Input should be a valid int"),
        (call("subtract", a=2), "Error: there is no tool 'subtract'; use add, fail."),
        ("<tool_call>{oops</tool_call>", "Error: The call is not valid JSON"),
    ],
)
def test_what_goes_wrong_goes_back_to_the_model(answer: str, told: str) -> None:
    chat, prompts = _chat(answer, "Sorry.")
    acted = chat.act("?", [add, fail])

    assert acted.reply.text == "Sorry."
    assert acted.runs[0].failed
    assert told in prompts[1]


def test_an_answer_without_calls_ends_at_once() -> None:
    chat, prompts = _chat("Hello.")
    acted = chat.act("Hi.", [add])

    assert (acted.reply.text, acted.runs, len(prompts)) == ("Hello.", (), 1)


def test_rounds_are_bounded_and_the_history_is_then_as_it_was() -> None:
    ran: list[int] = []

    def again(n: int) -> str:
        ran.append(n)
        return "more"

    chat, _ = _chat("Hello.", *[call("again", n=n) for n in range(9)])
    chat.respond("Hi.")
    before = chat.messages
    with pytest.raises(ToolRoundsExceeded, match="3 rounds"):
        chat.act("?", [again], max_rounds=3)

    assert ran == [0, 1, 2]
    assert chat.messages == before


def test_a_failure_of_the_engine_leaves_the_history_as_it_was() -> None:
    def broken(state: FakeDecodeState) -> None:
        raise EngineError("broken")

    def crash(text: str) -> str:
        engine.before_extend = broken
        return "done"

    engine = ScriptEngine((call("crash", text="x"),))
    chat = fake_model(engine, template=WITH_TOOLS).chat()
    with pytest.raises(EngineError, match="broken"):
        chat.act("?", [crash])

    assert chat.messages == []


def test_a_tool_may_not_use_the_chat_that_called_it() -> None:
    def ask(question: str) -> str:
        return chat.respond(question).text

    chat, _ = _chat(call("ask", question="Hm?"), "Fine.")
    [run] = chat.act("?", [ask]).runs

    assert run.failed
    assert RequestError.__name__ in run.result


def test_a_template_without_tools_gets_them_in_the_system_message() -> None:
    chat, prompts = _chat(call("add", a=2, b=3), "It is 5.", template=TEMPLATE)
    chat.system = "Be brief."
    acted = chat.act("2 + 3?", [add])

    assert acted.reply.text == "It is 5."
    assert prompts[0].startswith("system: Be brief.\n\nYou may call functions")
    assert '"name": "add"' in prompts[0]
    assert prompts[1].endswith("user: <tool_response>\n5\n</tool_response>\n\x02")
    assert chat.messages[0] == {"role": "system", "content": "Be brief."}


WITH_CALLS = WITH_TOOLS.replace(
    "{{ m.content }}\x03",
    "{{ m.content }}{% for c in m.tool_calls or [] %}[{{ c.function.name }}:"
    "{{ c.function.arguments | tojson }}]{% endfor %}\x03",
)


def test_a_template_that_writes_calls_writes_them_its_own_way() -> None:
    fenced = f"```json\n{json.dumps({'name': 'add', 'arguments': {'a': 2, 'b': 3}})}\n```"
    chat, prompts = _chat(fenced, "It is 5.", template=WITH_CALLS)

    assert chat.act("2 + 3?", [add]).reply.text == "It is 5."
    assert '\x02[add:{"a": 2, "b": 3}]\x03add gave 5\n\x02' in prompts[1]
    assert chat.messages[1]["tool_calls"][0]["function"]["name"] == "add"


def test_a_template_that_refuses_several_calls_gets_them_as_text() -> None:
    only_one = WITH_CALLS.replace(
        "{% for m in messages %}",
        "{% for m in messages %}{% if (m.tool_calls or []) | length > 1 %}"
        "{{ raise_exception('one call only') }}{% endif %}",
    )
    answer = HERMES.write([ToolCall("add", {"a": 1, "b": 1}), ToolCall("add", {"a": 2, "b": 2})])
    chat, prompts = _chat(f"Two.\n{answer}", "2 and 4", template=only_one)

    assert chat.act("?", [add]).reply.text == "2 and 4"
    assert f"\x02Two.\n{answer}\x03add gave 2" in prompts[1]
    assert len(chat.messages[1]["tool_calls"]) == 2
