"""Loops that run tools: at once, in order, cancelled, late."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from edgesdk.errors import (
    DeadlineExceeded,
    InvalidOption,
    RequestError,
)
from tests.support.script_engine import call, script_chat


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


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
