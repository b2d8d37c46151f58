"""The loop of a model and its tools, with a model that says what is written down."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from edgesdk.chat import Chat
from edgesdk.errors import (
    DeadlineExceeded,
    EngineError,
    InvalidOption,
    RequestError,
    ToolRoundsExceeded,
)
from edgesdk.tools.call_table import HERMES
from edgesdk.tools.calls import ToolCall
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


SUM = call("add", a=2, b=3)


def test_calls_of_one_answer_run_at_once_and_keep_their_order() -> None:
    both = threading.Barrier(2, timeout=30)
    second_done = threading.Event()

    def meet(name: str) -> str:
        both.wait()
        if name == "first":
            assert second_done.wait(30)
        else:
            second_done.set()
        return name

    chat, prompts = script_chat(
        f"{call('meet', name='first')}\n{call('meet', name='second')}", "Met."
    )
    acted = chat.act("?", [meet])
    assert [run.result for run in acted.runs] == ["first", "second"]
    assert "meet gave first\nmeet gave second\n" in prompts[1]


def test_one_call_runs_in_the_callers_thread() -> None:
    threads: list[threading.Thread] = []

    def here() -> None:
        threads.append(threading.current_thread())

    chat, prompts = script_chat(call("here"), "Done.")
    chat.act("?", [here])
    assert threads == [threading.current_thread()]
    assert "here gave null" in prompts[1]


def test_asynchronous_tools_run_at_once_in_the_event_loop() -> None:
    chat, _ = script_chat(
        f"{call('ask', name='b')}\n{call('give', name='b')}\n{call('add', a=1, b=1)}", "Done."
    )
    acted: list[Any] = []

    async def main() -> None:
        given: dict[str, asyncio.Event] = {"b": asyncio.Event()}

        async def ask(name: str) -> str:
            await asyncio.wait_for(given[name].wait(), 30)
            return f"asked {name}"

        async def give(name: str) -> str:
            given[name].set()
            raise LookupError("lost")

        acted.append(await chat.aact("?", [ask, give, add]))

    asyncio.run(main())
    assert [run.result for run in acted[0].runs] == ["asked b", "Error: LookupError: lost", "2"]
    assert [run.failed for run in acted[0].runs] == [False, True, False]
    assert acted[0].reply.text == "Done."
    assert len(chat.messages) == 6


def test_an_asynchronous_tool_needs_the_asynchronous_loop() -> None:
    async def ask(name: str) -> str:
        return name

    chat, _ = script_chat(call("ask", name="b"), "Done.")
    with pytest.raises(InvalidOption, match="aact"):
        chat.act("?", [ask])
    with pytest.raises(InvalidOption, match=r"respond\(\)"):
        chat.act("?", [{"type": "function", "function": {"name": "look"}}])  # type: ignore[list-item]
    assert chat.messages == []


def test_a_cancelled_loop_cancels_its_tools_and_leaves_the_chat_as_it_was() -> None:
    chat, _ = script_chat("Hello.", call("hang"), "Hello.")
    ended: list[str] = []

    async def main() -> None:
        hangs = asyncio.Event()

        async def hang() -> None:
            hangs.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        await chat.arespond("Hi.")
        task = asyncio.create_task(chat.aact("?", [hang]))
        await hangs.wait()
        with pytest.raises(RequestError, match="still answering"):
            chat.respond("?")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ended == ["cancelled"]
    assert [m["content"] for m in chat.messages] == ["Hi.", "Hello."]
    assert chat.respond("?").text == "Hello."


@pytest.mark.parametrize("calls", [1, 2])
def test_ctrl_c_in_a_tool_leaves_the_chat_as_it_was(calls: int) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    chat, _ = script_chat("\n".join([call("stop")] * calls), "Hello.")
    with pytest.raises(KeyboardInterrupt):
        chat.act("?", [stop])
    assert chat.messages == []
    assert chat.respond("?").text == "Hello."


def test_a_deadline_ends_a_loop_whose_tools_do_not_end() -> None:
    free = threading.Event()

    def hang() -> None:
        free.wait(60)

    async def hang_too() -> None:
        await asyncio.Event().wait()

    try:
        chat, _ = script_chat(f"{call('hang')}\n{call('hang')}", call("hang_too"), "Hello.")
        with pytest.raises(DeadlineExceeded):
            chat.act("?", [hang], deadline=1.0)
        with pytest.raises(DeadlineExceeded):
            asyncio.run(chat.aact("?", [hang_too], deadline=1.0))
        assert chat.messages == []
        assert chat.respond("?").text == "Hello."
    finally:
        free.set()


def test_a_loop_goes_on_from_results_that_were_given() -> None:
    chat, _ = script_chat(SUM, SUM, "It is 5.")
    [asked] = chat.respond("?", tools=[add]).tool_calls
    chat.add_tool_result(asked, 5)
    acted = chat.act(None, [add])
    assert [m["role"] for m in acted.messages] == ["user", *["assistant", "tool"] * 2, "assistant"]
    assert chat.messages == list(acted.messages)


def test_all_answers_of_a_loop_have_receipts() -> None:
    chat, _ = script_chat(SUM, SUM, "It is 5.")
    acted = chat.act("?", [add])
    assert [reply.finish_reason for reply in acted.replies] == ["tool_calls", "tool_calls", "stop"]
    first, second, _ = (reply.receipt for reply in acted.replies)
    assert second.cached_tokens >= first.prompt_tokens + len(SUM)
