"""Half an answer: never better than a whole one, never delivered as sure, and marked everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_engine import FakeEngine, fake_model
from support.hybrid_served import ask, hybrid_server, report, stream, text_of
from support.offline_queues import KEY
from support.scripted_server import (
    HEAD,
    Reset,
    Script,
    ScriptedServer,
    Wait,
    answer,
    chunk,
    event,
    usage,
)
from support.served import TOOL_TEMPLATE
from support.talking_cloud import TalkingCloud, called

from edgesdk.errors import ContextOverflow
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.cloud_reply import Restart, TextDelta
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.offline.queue import OfflineQueue
from edgesdk.hybrid.reply import HybridReply
from edgesdk.hybrid.storage.journal import Journal, training_set
from edgesdk.hybrid.stream import HybridEvent

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("short_pauses")]

UNSURE = Confidence(threshold=0.99, abort_below=0.0)
HOPELESS = Confidence(threshold=0.99, abort_below=0.9, decide_after=4)
LOCAL = "I am not sure."
TOO_LONG = "x" * 200


def ended(finish: str | None, *texts: str, **delta: Any) -> Script:
    first = [chunk(**delta)] if delta else []
    pieces = [chunk(text) for text in texts]
    return [HEAD, *first, *pieces, chunk(finish=finish), usage(3, 2), event("[DONE]")]


BROKEN: dict[str, Script] = {
    "cut hard": [HEAD, chunk("The "), chunk("an"), Reset()],
    "cut silently": [HEAD, chunk("The "), chunk("an")],
    "an error in band": [HEAD, chunk("The "), chunk("an"), event({"error": {"message": "no"}})],
}
CUT = ended("length", "The ", "an")
FILTERED = ended("content_filter", "The ", "an")
PARTIAL = {**BROKEN, "cut at its limit": CUT, "filtered": FILTERED}
EMPTY: dict[str, Script] = {
    "empty": ended("stop"),
    "blank": ended("stop", " ", "\n"),
    "empty at its limit": ended("length"),
    "reasoning alone": ended("stop", reasoning_content="Hm."),
    "reasoning up to the limit": ended("length", reasoning_content="Hm."),
    "filtered at once": ended("content_filter"),
}


def shown(events: list[HybridEvent]) -> str:
    """What an app has on its screen at the end."""
    text = ""
    for one in events:
        text = "" if isinstance(one, Restart) else text
        text += one.text if isinstance(one, TextDelta) else ""
    return text


def respond(client: HybridClient, prompt: str, options: dict[str, Any]) -> HybridReply:
    return client.respond(prompt, **options)


def arespond(client: HybridClient, prompt: str, options: dict[str, Any]) -> HybridReply:
    return asyncio.run(client.arespond(prompt, **options))


def read_stream(client: HybridClient, prompt: str, options: dict[str, Any]) -> HybridReply:
    with client.stream(prompt, **options) as answering:
        assert shown(list(answering)) == answering.reply.text
    return answering.reply


def read_astream(client: HybridClient, prompt: str, options: dict[str, Any]) -> HybridReply:
    async def read() -> HybridReply:
        async with client.astream(prompt, **options) as answering:
            assert shown([one async for one in answering]) == answering.reply.text
        return answering.reply

    return asyncio.run(read())


WAYS = [respond, arespond, read_stream, read_astream]


def asked(
    script: Script,
    prompt: str = "Hi",
    *,
    way: Callable[[HybridClient, str, dict[str, Any]], HybridReply] = read_stream,
    device: str = LOCAL,
    confidence: Confidence = UNSURE,
    journal: Journal | None = None,
    queue: OfflineQueue | None = None,
    **options: Any,
) -> HybridReply:
    """The reply where the cloud ends each answer like `script`."""
    model = fake_model(FakeEngine(device.encode(), context_length=64))
    with (
        ScriptedServer([script]) as server,
        HybridClient(
            model, cloud=Cloud(server.url, "big", "key"), confidence=confidence, journal=journal,
            queue=queue,
        ) as client,
    ):  # fmt: skip
        return way(client, prompt, options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*PARTIAL, *EMPTY])
def test_a_whole_answer_of_the_device_is_better(name: str, way: Any) -> None:
    reply = asked((PARTIAL | EMPTY)[name], way=way)
    assert (reply.text, reply.route, reply.cloud) == (LOCAL, "local", None)
    assert (reply.complete, reply.low_confidence, reply.finish_reason) == (True, True, "stop")
    assert "; the cloud" in reply.reason
    # What came of the cloud was paid for.
    assert reply.cost.tokens > 0


@pytest.mark.parametrize("name", [*BROKEN, "filtered", *EMPTY])
@pytest.mark.parametrize(
    "options", [{"prefer": "cloud"}, {"confidence": HOPELESS}], ids=["no draft", "half a draft"]
)
def test_the_device_then_makes_a_whole_one(name: str, options: dict[str, Any]) -> None:
    reply = asked((PARTIAL | EMPTY)[name], **options)
    assert (reply.text, reply.route, reply.complete) == (LOCAL, "local", True)
    assert reply.low_confidence


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "finish"),
    [*((name, "incomplete") for name in BROKEN), ("cut at its limit", "length"),
     ("filtered", "content_filter")],
)  # fmt: skip
def test_where_there_is_nothing_better_it_is_marked(name: str, finish: str, way: Any) -> None:
    reply = asked(PARTIAL[name], TOO_LONG, way=way)
    assert (reply.text, reply.route, reply.finish_reason) == ("The an", "cloud", finish)
    assert (reply.complete, reply.low_confidence) == (False, True)
    assert (reply.receipt.complete, reply.receipt.low_confidence) == (False, True)
    assert "the cloud's answer" in reply.reason
    assert finish in reply.receipt.line()
    assert "low confidence" in reply.receipt.line()


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_of_both_is_an_error(name: str) -> None:
    with pytest.raises(ContextOverflow):
        asked(EMPTY[name], TOO_LONG)


def test_an_answer_of_the_device_that_is_cut_is_asked_again() -> None:
    sure = Confidence(threshold=0.0, abort_below=0.0)
    reply = asked(answer("The answer."), confidence=sure, max_tokens=9)
    assert (reply.text, reply.complete, reply.low_confidence) == ("The answer.", True, False)
    assert reply.reason == "the device's answer was cut at its token limit"


@pytest.mark.parametrize(
    ("script", "text", "route", "finish"),
    [
        (CUT, "The an", "cloud", "length"),
        (BROKEN["cut hard"], LOCAL[:9], "local", "length"),
        (FILTERED, LOCAL[:9], "local", "length"),
        (EMPTY["empty"], LOCAL[:9], "local", "length"),
    ],
)
def test_of_two_halves_the_better_is_marked(
    script: Script, text: str, route: str, finish: str
) -> None:
    reply = asked(script, max_tokens=9)
    assert (reply.text, reply.route, reply.finish_reason) == (text, route, finish)
    assert (reply.complete, reply.low_confidence) == (False, True)


def test_what_the_app_wants_of_the_device_is_marked_too() -> None:
    whole = asked(answer("ok"), prefer="local")
    assert (whole.complete, whole.low_confidence) == (True, False)
    cut = asked(answer("ok"), prefer="local", max_tokens=9)
    assert (cut.text, cut.complete, cut.low_confidence) == (LOCAL[:9], False, True)


def test_calls_without_a_word_withdraw_the_draft() -> None:
    def answers(body: dict[str, Any]) -> Script:
        return called(("weather", {"city": "Rome"}))

    def weather(city: str) -> str:
        """Say the weather.

        Args:
            city: where.
        """
        return city

    model = fake_model(FakeEngine(LOCAL.encode()), template=TOOL_TEMPLATE)
    with (
        TalkingCloud(answers) as cloud,
        HybridClient(model, cloud=cloud.cloud(), confidence=UNSURE) as client,
    ):
        reply = read_stream(client, "Hi", {"tools": [weather]})
    assert (reply.text, reply.complete, reply.finish_reason) == ("", True, "tool_calls")
    assert [call.name for call in reply.tool_calls] == ["weather"]


@pytest.mark.parametrize(
    ("name", "kept"),
    [*((name, False) for name in BROKEN), ("filtered", False), ("cut at its limit", True)],
)
def test_a_chat_forgets_a_turn_that_broke_off(name: str, kept: bool) -> None:
    model = fake_model(FakeEngine(LOCAL.encode(), context_length=64))
    with (
        ScriptedServer([PARTIAL[name]]) as server,
        HybridClient(model, cloud=Cloud(server.url, "big", "key"), confidence=UNSURE) as client,
        client.chat() as chat,
    ):
        assert chat.respond(TOO_LONG).text == "The an"
        assert [m["content"] for m in chat.messages] == ([TOO_LONG, "The an"] if kept else [])
        # The device's whole answer joins as any other.
        chat.reset()
        assert chat.respond("Hi").text == LOCAL
        assert [m["content"] for m in chat.messages] == ["Hi", LOCAL]


@pytest.mark.parametrize(
    ("name", "waits"), [*((name, True) for name in BROKEN), ("cut at its limit", False)]
)
def test_what_broke_off_is_asked_again_later(tmp_path: Path, name: str, waits: bool) -> None:
    queue = OfflineQueue(tmp_path / "queue.sqlite", key=KEY)
    reply = asked(PARTIAL[name], queue=queue)
    assert (reply.text, reply.queued) == (LOCAL, 1 if waits else None)
    assert len(queue.entries()) == waits


@pytest.mark.parametrize("name", PARTIAL)
def test_nobody_learns_from_half_an_answer(tmp_path: Path, name: str) -> None:
    journal = Journal(tmp_path / "journal.sqlite", keep_texts=True)
    asked(PARTIAL[name], TOO_LONG, journal=journal)
    asked(PARTIAL[name], journal=journal)
    asked(answer("The answer."), journal=journal)
    half, fallen_back, whole = (entry.decision for entry in journal.entries())
    assert (half.route, half.complete) == ("cloud", False)
    assert (fallen_back.route, fallen_back.complete, fallen_back.finish_reason) == (
        "local", True, "stop",
    )  # fmt: skip
    assert (whole.route, whole.complete, whole.local_finish_reason) == ("cloud", True, "stop")
    learned = training_set(journal.entries())
    assert [example["messages"][-1]["content"] for example in learned.examples] == ["The answer."]
    assert learned.unfinished == 1


@pytest.mark.parametrize("name", [*PARTIAL, *EMPTY])
@pytest.mark.parametrize("hold", ["answer", "nothing"])
def test_a_server_gives_the_whole_answer(name: str, hold: Any) -> None:
    script = (PARTIAL | EMPTY)[name]
    with ScriptedServer([script]) as cloud, hybrid_server(cloud, hold=hold) as (_, client):
        reply = ask(client).parse()
    choice, told = reply.choices[0], report(reply)
    assert (choice.message.content, choice.finish_reason) == (LOCAL, "stop")
    assert (told["route"], told["whole"], told["low_confidence"]) == ("local", True, True)


@pytest.mark.parametrize(
    ("name", "finish"),
    [*((name, "length") for name in BROKEN), ("cut at its limit", "length"),
     ("filtered", "content_filter")],
)  # fmt: skip
def test_a_server_marks_what_it_cannot_take_back(name: str, finish: str) -> None:
    with ScriptedServer([PARTIAL[name]]) as cloud, hybrid_server(cloud) as (_, client):
        _, chunks = stream(client)
    told = report(chunks[-1])
    assert (text_of(chunks), chunks[-1].choices[0].finish_reason) == ("The an", finish)
    assert (told["route"], told["whole"], told["low_confidence"]) == ("cloud", False, True)
    assert len(cloud.requests) == 1


@pytest.mark.parametrize("name", EMPTY)
def test_a_stream_of_a_server_shows_the_draft_where_the_cloud_says_nothing(name: str) -> None:
    with ScriptedServer([EMPTY[name]]) as cloud, hybrid_server(cloud) as (_, client):
        _, chunks = stream(client)
    # Blanks that were shown stay before it.
    assert (text_of(chunks).strip(), report(chunks[-1])["whole"]) == (LOCAL, True)


def test_what_the_deadline_cuts_is_kept_only_where_the_device_has_nothing() -> None:
    stalls: Script = [HEAD, chunk("The an"), Wait(30)]
    drafted = asked(stalls, deadline=1.0)
    assert (drafted.text, drafted.route, drafted.complete) == (LOCAL, "local", True)
    late = asked(stalls, TOO_LONG, deadline=1.0)
    assert (late.text, late.route) == ("The an", "cloud")
    # A part of the deadline is left for the device, so the cloud's part may end before it.
    assert late.finish_reason in ("incomplete", "deadline")
    assert (late.complete, late.low_confidence) == (False, True)


@pytest.mark.parametrize("name", BROKEN)
def test_another_endpoint_comes_before_the_device(name: str) -> None:
    model = fake_model(FakeEngine(LOCAL.encode()))
    with (
        ScriptedServer([BROKEN[name]]) as first,
        ScriptedServer([answer("The answer.")]) as second,
        HybridClient(
            model,
            cloud=[Cloud(first.url, "big", "key"), Cloud(second.url, "big", "key")],
            confidence=UNSURE,
        ) as client,
    ):
        reply = read_stream(client, "Hi", {})
    assert (reply.text, reply.complete, reply.low_confidence) == ("The answer.", True, False)


def test_an_app_that_wants_no_second_attempt_gets_the_whole_answer_too() -> None:
    model = fake_model(FakeEngine(LOCAL.encode()))
    with (
        ScriptedServer([BROKEN["cut hard"]]) as server,
        HybridClient(
            model, cloud=Cloud(server.url, "big", "key"), confidence=UNSURE, on_break="incomplete"
        ) as client,
    ):
        reply = read_stream(client, "Hi", {})
    assert (reply.text, reply.complete, len(server.requests)) == (LOCAL, True, 1)
