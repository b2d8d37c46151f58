"""Conversations with the hybrid client: history, placeholders, rules, tools, asyncio, receipts."""

from __future__ import annotations

import asyncio
import gc
import random
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from support.fake_engine import FakeDecodeState, FakeEngine, fake_model
from support.scripted_server import HEAD, Wait, chunk, status
from support.served import TOOL_TEMPLATE
from support.talking_cloud import TalkingCloud, called, echo, last, said

from edgesdk.errors import (
    ContextOverflow,
    EmptyPrompt,
    InvalidOption,
    RequestError,
    ToolRoundsExceeded,
)
from edgesdk.hybrid.chat import HybridChat
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.cloud_reply import TextDelta
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.privacy.policy import Policy, UploadQuestion
from edgesdk.session import save_chat

pytestmark = pytest.mark.usefixtures("short_pauses")

# The fake engine's tokens have a probability of 0.39, and its answers that of all their tokens.
SURE, UNSURE = Confidence(threshold=0.0, abort_below=0.0), Confidence(threshold=0.5)
LOCAL = b"I am not sure."
PLACEHOLDER = re.compile(r"<[A-Z_]+_[0-9]+>")
PATIENCE = 30.0


def client_with(
    server: TalkingCloud, engine: FakeEngine | None = None, **changes: Any
) -> HybridClient:
    model = fake_model(engine or FakeEngine(LOCAL), template=TOOL_TEMPLATE)
    settings: dict[str, Any] = {"cloud": server.cloud(), "confidence": UNSURE, **changes}
    return HybridClient(model, **settings)


def roles(messages: list[dict[str, Any]]) -> list[str]:
    return [message["role"] for message in messages]


def test_a_conversation_goes_on_whoever_answered() -> None:
    engine = FakeEngine(b"Here.")
    with (
        TalkingCloud(lambda body: said("There.")) as cloud,
        client_with(cloud, engine, confidence=SURE) as client,
        client.chat(system="Be terse.") as chat,
    ):
        replies = [
            chat.respond("One"),
            chat.respond("Two", prefer="cloud"),
            chat.respond("Three"),
        ]
        (body,) = cloud.bodies()
        assert [reply.route for reply in replies] == ["local", "cloud", "local"]
        assert [m["content"] for m in chat.messages] == [
            "Be terse.", "One", "Here.", "Two", "There.", "Three", "Here.",
        ]  # fmt: skip
        assert [m["content"] for m in body["messages"]] == ["Be terse.", "One", "Here.", "Two"]
        # One sequence for all turns, so that only what is new is computed.
        assert len(engine.states) == 1
        assert replies[2].receipt.cached_tokens == replies[0].receipt.prompt_tokens + 5
        chat.reset()
        assert roles(chat.messages) == ["system"]
    assert all(state.closed for state in engine.states)


def test_placeholders_are_stable_within_a_conversation_and_nothing_elsewhere() -> None:
    seen: list[list[str]] = []

    def answers(body: dict[str, Any]) -> Any:
        seen.append([PLACEHOLDER.findall(str(m["content"])) for m in body["messages"]])
        return echo(body)

    with TalkingCloud(answers) as cloud, client_with(cloud) as client:
        chat, other = client.chat(), client.chat()
        assert chat.respond("I am ann@x.io").text == "I am ann@x.io"
        assert chat.respond("Cc bob@y.org and ann@x.io").text == "Cc bob@y.org and ann@x.io"
        first, (one, answered, two) = seen
        assert first[0] == one == answered
        assert two[1] == one[0] != two[0]
        # Said in another conversation it is a text like others, there and back.
        assert other.respond(f"What is {one[0]}?").text == f"What is {one[0]}?"
        assert other.respond("I am eve@z.net").text == "I am eve@z.net"
    assert b"@" not in cloud.sent()


def test_a_preview_shows_what_is_then_sent_and_sends_nothing() -> None:
    with (
        TalkingCloud(lambda body: said("Done.")) as cloud,
        client_with(cloud, policy=Policy("redact")) as client,
        client.chat(system="You write for bob@y.org.") as chat,
    ):
        prompt = "Mail ann@x.io with sk-abcdefghijklmnopqrstuvwxyz0123456789ABCDEF"
        shown = chat.preview(prompt)
        assert cloud.bodies() == []
        assert (shown.upload, shown.reason) == ("redact", "the default")
        assert shown.kinds == {"EMAIL", "API_KEY"}
        assert "ann@x.io" in shown.messages[-1]["content"]
        assert "sk-abc" not in shown.messages[-1]["content"]
        assert chat.preview(prompt, upload="local_only").upload == "local_only"
        chat.respond(prompt, prefer="cloud")
        (body,) = cloud.bodies()
    assert body["messages"] == list(shown.redacted)
    assert "ann@x.io" not in str(shown.redacted)


@pytest.mark.parametrize("permission", [True, "redact", "yes", 1])
def test_a_permission_says_how_a_request_leaves(permission: Any) -> None:
    asked = []

    def ask(question: UploadQuestion) -> Any:
        asked.append(question)
        return permission

    with (
        TalkingCloud(lambda body: said("Done.")) as cloud,
        client_with(cloud, policy=Policy("ask", ask=ask)) as client,
    ):
        reply = client.respond("Mail ann@x.io")
        bodies = cloud.bodies()
    (question,) = asked
    sent = {True: [question.messages], "redact": [question.redacted]}
    known = permission is True or permission == "redact"
    assert [body["messages"] for body in bodies] == (sent[permission] if known else [])
    assert reply.route == ("cloud" if known else "local")


def test_a_turn_that_was_to_stay_never_leaves_with_a_later_one() -> None:
    policy = Policy("allow", tags={"medical": "local_only"})
    with (
        TalkingCloud(lambda body: said("ok")) as cloud,
        client_with(cloud, policy=policy) as client,
    ):
        chat = client.chat()
        assert chat.respond("Hello").route == "cloud"
        assert chat.respond("My blood has iron", tags=["medical"]).route == "local"
        kept = chat.respond("And now?", prefer="cloud")
        assert (kept.route, kept.low_confidence) == ("local", True)
        assert chat.respond("And now?", upload="allow").route == "local"
        assert len(cloud.requests) == 1
        chat.reset()
        assert chat.respond("Hello").route == "cloud"
        assert chat.respond("Mail ann@x.io", upload="redact").route == "cloud"
        assert chat.respond("Again, to all", upload="allow").route == "cloud"
    assert b"iron" not in cloud.sent()
    assert b"ann@x.io" not in cloud.sent()


@pytest.mark.parametrize("way", ["fork", "save"])
def test_what_goes_on_from_a_conversation_has_all_of_it(way: str, tmp_path: Path) -> None:
    policy = Policy("redact", tags={"medical": "local_only"})
    engine = FakeEngine(LOCAL)
    with TalkingCloud(echo) as cloud, client_with(cloud, engine, policy=policy) as client:

        def twin_of(chat: HybridChat) -> HybridChat:
            if way == "fork":
                return chat.fork()
            chat.save(tmp_path / "kept.chat")
            # As in another process, which has nothing but the file.
            return client_with(cloud, engine, policy=policy).restore(tmp_path / "kept.chat")

        with client.chat(system="Be terse.") as chat:
            chat.respond("I am ann@x.io")
            twin = twin_of(chat)
            assert twin.messages == chat.messages
            assert twin.system == "Be terse."
            assert twin.respond("Am I ann@x.io or bob@x.io?").text == "Am I ann@x.io or bob@x.io?"
            names = [PLACEHOLDER.findall(last(body)) for body in cloud.bodies()]
            assert names[0][0] == names[1][0] != names[1][1]
            # Each goes on by itself.
            assert len(chat.messages) == 3
            chat.respond("My blood has iron", tags=["medical"])
            late = twin_of(chat)
            kept = late.respond("And now?", upload="allow")
            assert (kept.route, kept.receipt.cached_tokens > 0) == ("local", True)
            assert twin.respond("And now?").route == "cloud"
            late.close()
            twin.close()
    assert b"@" not in cloud.sent()
    assert b"iron" not in cloud.sent()
    assert all(state.closed for state in engine.states)


def test_the_device_leaves_out_the_oldest_turns_and_the_cloud_gets_all() -> None:
    engine = FakeEngine(b"Yes.", context_length=400)
    policy = Policy("allow", tags={"mine": "local_only"})
    with TalkingCloud(echo) as cloud, client_with(cloud, engine, policy=policy) as client:
        chat = client.chat(system="Be terse.", overflow="drop_oldest_turns")
        dropped = []
        for number in range(12):
            reply = chat.respond(f"{number}: {'x' * 40}", prefer="local")
            overflow = reply.receipt.overflow
            dropped.append(0 if overflow is None else overflow.turns_dropped)
            if overflow is not None:
                assert overflow.tokens_after <= 300 < overflow.tokens_before
                assert reply.receipt.prompt_tokens == overflow.tokens_after
                assert overflow.phrase() in reply.receipt.line()
        assert dropped[:3] == [0, 0, 0]
        assert dropped[-1] > 3
        # Some turns are dropped at once, so that what follows stays in the KV cache meanwhile.
        assert len(set(dropped)) < len(dropped) // 2
        # The history is whole, and so is what a cloud is sent.
        assert chat.respond("And all of it?", prefer="cloud").route == "cloud"
        (body,) = cloud.bodies()
        assert len(body["messages"]) == 1 + 2 * 12 + 1
        twin = chat.fork()
        assert twin.respond("Mine", tags=["mine"]).receipt.overflow is not None
        for one in (chat, twin):
            one.close()
        strict = client.chat()
        strict.respond("y" * 250, prefer="local", max_tokens=50)
        with pytest.raises(ContextOverflow):
            strict.respond("z" * 200, tags=["mine"])
        with pytest.raises(InvalidOption, match="summarize"):
            client.chat(overflow="summarize")  # type: ignore[arg-type]


def test_a_chat_of_the_model_goes_on_with_a_client(tmp_path: Path) -> None:
    engine = FakeEngine(LOCAL)
    with TalkingCloud(echo) as cloud, client_with(cloud, engine) as client:
        with fake_model(engine, template=TOOL_TEMPLATE).chat() as plain:
            plain.respond("I am ann@x.io")
            plain.save(tmp_path / "plain.chat")
        with client.restore(tmp_path / "plain.chat") as chat:
            assert chat.respond("Who am I?", prefer="cloud").route == "cloud"
    assert b"ann@" not in cloud.sent()


def test_files_that_are_no_chat_leave_no_cache(tmp_path: Path) -> None:
    engine, file = FakeEngine(LOCAL), tmp_path / "kept.chat"
    with TalkingCloud(echo) as cloud, client_with(cloud, engine) as client:
        file.write_bytes(b"no chat")
        with pytest.raises(RequestError):
            client.restore(file)
        state = FakeDecodeState(engine)
        save_chat(file, state, system=None, turns=[], extra={"strictest": "maybe"})
        with pytest.raises(RequestError, match="rules cannot be read"):
            client.restore(file)
    assert all(state.closed for state in engine.states)


def test_what_fails_leaves_history_as_it_was() -> None:
    with TalkingCloud(lambda body: said("ok")) as cloud, client_with(cloud) as client:
        chat = client.chat()
        chat.respond("One")
        before = chat.messages
        with pytest.raises(InvalidOption):
            chat.respond("Two", temperature=-1)
        with pytest.raises(EmptyPrompt):
            chat.respond()
        stream = chat.stream("Two")
        with pytest.raises(RequestError, match="still answering"):
            chat.stream("Three")
        next(stream)
        stream.close()
        unread = chat.stream("Two")
        del unread
        gc.collect()
        assert chat.messages == before
        assert chat.respond("Two").text == "ok"
    assert len(chat.messages) == 4


def book(city: str, days: int = 1) -> str:
    """Book a room."""
    if days > 9:
        raise ValueError("too long")
    return f"booked {city} for {days}, confirmed to ann@x.io"


def test_functions_run_with_values_and_only_where_they_fit() -> None:
    ran: list[tuple[str, int]] = []

    def booking(city: str, days: int = 1) -> str:
        """Book a room."""
        ran.append((city, days))
        return book(city, days)

    def answers(body: dict[str, Any]) -> Any:
        results = [m for m in body["messages"] if m["role"] == "tool"]
        if not results:
            (mail,) = PLACEHOLDER.findall(last(body))
            return called(("booking", {"city": mail, "days": 2}), ("booking", {"city": "Rome"}))
        return said("Done: ", *PLACEHOLDER.findall(results[0]["content"]))

    with TalkingCloud(answers) as cloud, client_with(cloud) as client:
        chat = client.chat()
        acted = chat.act("Book a room at ann@x.io", [booking])
    assert sorted(ran) == [("Rome", 1), ("ann@x.io", 2)]
    assert acted.reply.text == "Done: ann@x.ioann@x.io"
    assert roles(chat.messages) == ["user", "assistant", "tool", "tool", "assistant"]
    assert [reply.route for reply in acted.replies] == ["cloud", "cloud"]
    assert b"ann@x.io" not in cloud.sent()


def test_a_loop_ends() -> None:
    with (
        TalkingCloud(lambda body: called(("book", {"city": "Rome"}))) as cloud,
        client_with(cloud) as client,
    ):
        chat = client.chat()
        with pytest.raises(ToolRoundsExceeded):
            chat.act("Book", [book], max_rounds=2)
        assert chat.messages == []
        with pytest.raises(InvalidOption, match="no function"):
            chat.act("Book", [{"type": "function", "function": {"name": "f"}}])  # type: ignore[list-item]
        assert chat.messages == []
    assert len(cloud.requests) == 3


def test_results_are_given_by_hand() -> None:
    def answers(body: dict[str, Any]) -> Any:
        if body["messages"][-1]["role"] == "tool":
            assert body["messages"][-2]["tool_calls"][0]["function"]["arguments"] == (
                '{"city": "Rome"}'
            )
            return said("You are in room ", last(body))
        return called(("book", {"city": "Rome"}))

    with TalkingCloud(answers) as cloud, client_with(cloud) as client:
        chat = client.chat()
        reply = chat.respond("Book Rome", tools=[book])
        with pytest.raises(RequestError, match="waits for the result"):
            chat.respond("Well?")
        (call,) = chat.pending_calls
        assert call.id == reply.tool_calls[0].id
        chat.add_tool_result(call, 7)
        with pytest.raises(RequestError, match="no result of the call"):
            chat.add_tool_result(call, 8)
        assert chat.respond(tools=[book]).text == "You are in room 7"


def test_many_conversations_give_no_secret_away() -> None:
    """Every byte of many turns with tools, searched for every secret that was planted."""
    chance = random.Random(5)
    secrets = [
        "ann.lee@mail.example", "+86 138 0013 8000", "+44 20 7946 0958", "4111 1111 1111 1111",
        "DE89 3704 0044 0532 0130 00", "192.168.10.254", "postgres://admin:s3cret@db.internal/app",
        "sk-proj-abcdefghijklmnop1234", "AKIAIOSFODNN7EXAMPLE", "536-90-4399",
        "11010519491231002X",
    ]  # fmt: skip
    calls: list[Any] = []

    def file(things: list[str]) -> str:
        """File things."""
        calls.append(things)
        return f"filed {' and '.join(things)}"

    def answers(body: dict[str, Any]) -> Any:
        message = body["messages"][-1]
        found = PLACEHOLDER.findall(str(message["content"]))
        return called(("file", {"things": found})) if message["role"] == "user" else echo(body)

    with TalkingCloud(answers) as cloud, client_with(cloud) as client:
        for _ in range(25):
            chat = client.chat(system=f"You work for {chance.choice(secrets)}.")
            for _ in range(3):
                mine = chance.sample(secrets, 2)
                acted = chat.act(f"File {mine[0]} with {mine[1]} please", [file], prefer="cloud")
                assert calls.pop() == mine
                assert acted.reply.text == f"filed {mine[0]} and {mine[1]}"
    sent = cloud.sent()
    assert len(cloud.requests) == 150
    assert not [secret for secret in secrets if secret.encode() in sent]


def test_local_only_conversations_send_nothing() -> None:
    with (
        TalkingCloud(lambda body: said("no")) as cloud,
        client_with(cloud, policy=Policy("local_only")) as client,
    ):
        chat = client.chat()
        chat.respond("Mail ann@x.io", prefer="cloud")
        chat.respond("Again", tools=[book])
        assert cloud.requests == []


def test_asyncio_twins() -> None:
    async def main(client: HybridClient) -> None:
        reply = await client.arespond("Hi")
        assert (reply.text, reply.route) == ("The answer.", "cloud")
        async with client.astream("Hi", prefer="cloud") as stream:
            assert [e.text async for e in stream if isinstance(e, TextDelta)] == ["The ", "answer."]
        assert stream.reply.text == "The answer."
        chat = client.chat()
        replies = [await chat.arespond("One"), await chat.arespond("Two")]
        assert [one.text for one in replies] == ["The answer."] * 2
        many = await asyncio.gather(*(client.arespond(f"Hi {n}") for n in range(8)))
        assert {one.text for one in many} == {"The answer."}
        assert len(chat.messages) == 4

        async def booking(city: str) -> str:
            """Book."""
            await asyncio.sleep(0)
            return city

        acted = await chat.aact("Book Rome", [booking])
        assert acted.reply.text == "The answer."

    with (
        TalkingCloud(lambda body: said("The ", "answer.")) as cloud,
        client_with(cloud) as client,
    ):
        asyncio.run(asyncio.wait_for(main(client), PATIENCE))


@pytest.mark.parametrize("where", ["local", "cloud"])
def test_cancelling_a_task_ends_the_answer(where: str) -> None:
    reached = threading.Event()

    def slow(state: FakeDecodeState) -> None:
        if where == "local" and len(state.extended) > 2:
            reached.set()
            state.interrupted.wait(PATIENCE)

    def answers(body: dict[str, Any]) -> Any:
        reached.set()
        return [HEAD, chunk("The "), Wait(PATIENCE)]

    async def main(client: HybridClient) -> None:
        chat = client.chat()
        task = asyncio.create_task(chat.arespond("Hi"))
        assert await asyncio.to_thread(reached.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert chat.messages == []
        # It is free again.
        chat.reset()

    engine = FakeEngine(b"x" * 400, before_extend=slow)
    with TalkingCloud(answers) as cloud, client_with(cloud, engine) as client:
        asyncio.run(asyncio.wait_for(main(client), PATIENCE))


def test_receipts_say_who_and_why() -> None:
    with TalkingCloud(lambda body: said("The ", "answer.")) as cloud:
        there = cloud.cloud(input_price=1000.0, output_price=10_000.0)
        with client_with(cloud, cloud=there) as client:
            receipt = client.respond("Hi").receipt
            here = client.respond("Hi", prefer="local").receipt
            unasked = client.respond("Hi", prefer="cloud").receipt
    assert (receipt.route, receipt.endpoint, receipt.attempts) == ("cloud", there.name, 1)
    assert receipt.confidence == pytest.approx(0.3935 ** (len(LOCAL) + 1), rel=0.01)
    assert receipt.cost.money == pytest.approx(0.023)
    assert (receipt.prompt_tokens, receipt.output_tokens, receipt.finish_reason) == (3, 2, "stop")
    assert receipt.time_to_first_token is not None
    assert 0 < receipt.time_to_first_token <= receipt.seconds
    assert receipt.local is not None
    assert receipt.local.output_tokens == len(LOCAL)
    assert (receipt.requested_device, receipt.device) == ("auto", "cpu")
    assert "answered by big at 127.0.0.1" in receipt.line()
    assert "unsure" in receipt.line()
    assert (here.route, here.endpoint, here.cost.money, here.attempts) == ("local", None, 0, 0)
    assert here.output_tokens == len(LOCAL)
    assert "answered here" in here.line()
    assert (unasked.local, unasked.device, unasked.confidence) == (None, None, None)


def test_a_cloud_that_is_down_leaves_the_conversation_whole() -> None:
    with (
        TalkingCloud(lambda body: status("503 Busy")) as cloud,
        client_with(cloud) as client,
    ):
        chat = client.chat()
        reply = chat.respond("Hi")
        assert (reply.route, reply.low_confidence) == ("local", True)
        assert chat.respond("Again").text == LOCAL.decode()
    assert roles(chat.messages) == ["user", "assistant"] * 2
