"""The hybrid client judges the device's answer, not its thoughts, and keeps these to itself."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.reasoning_models import reasoning_model
from support.talking_cloud import TalkingCloud, said

from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.cloud_reply import Restart, TextDelta
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.offline.queue import queued_request
from edgesdk.hybrid.privacy.policy import Policy, UploadVerdict
from edgesdk.hybrid.storage.journal import Journal
from edgesdk.options import Options
from edgesdk.reply import ReasoningDelta

THOUGHT = "<think>\nTwo and two.\n</think>\n\nFour."
SURE = Confidence(threshold=0.0, abort_below=0.0)


def client_with(cloud: TalkingCloud, *answers: str, **changes: Any) -> HybridClient:
    model, _ = reasoning_model(*answers)
    settings: dict[str, Any] = {"confidence": SURE, "policy": Policy("allow"), **changes}
    return HybridClient(model, cloud=cloud.cloud(), **settings)


def from_cloud(body: dict[str, Any]) -> Any:
    return said("Four, of course.")


def test_an_answer_is_judged_by_its_own_tokens() -> None:
    with TalkingCloud(from_cloud) as cloud, client_with(cloud, THOUGHT) as client:
        stream = client.stream("2+2?")
        events = list(stream)
    reply = stream.reply
    assert (reply.route, reply.text, reply.reasoning) == ("local", "Four.", "Two and two.")
    assert reply.local is not None
    assert reply.local.signals is not None
    # Its letters and its end.
    assert reply.local.signals.length == len("Four.") + 1
    thoughts = [event for event in events if isinstance(event, ReasoningDelta)]
    assert "".join(event.text for event in thoughts) == "Two and two."
    assert {event.route for event in thoughts} == {"local"}
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "Four."
    assert reply.receipt.reasoning_tokens == len("<think>\nTwo and two.\n</think>")


@pytest.mark.parametrize("answer", ["<think>Two and two and two.", THOUGHT])
def test_an_answer_that_ends_in_its_reasoning_is_escalated(answer: str) -> None:
    with TalkingCloud(from_cloud) as cloud, client_with(cloud, answer) as client:
        stream = client.stream("2+2?", max_tokens=20)
        events = list(stream)
    reply = stream.reply
    assert (reply.route, reply.text) == ("cloud", "Four, of course.")
    assert "ended in its reasoning" in reply.reason
    (restart,) = [place for place, event in enumerate(events) if isinstance(event, Restart)]
    assert all(isinstance(event, ReasoningDelta) for event in events[:restart])


def test_it_is_not_to_be_trusted_where_no_cloud_answers() -> None:
    with TalkingCloud(from_cloud) as cloud, client_with(cloud, "<think>Two") as client:
        reply = client.respond("2+2?", prefer="local")
    # The model ended it itself.
    assert (reply.route, reply.text, reply.finish_reason) == ("local", "", "stop")
    assert reply.low_confidence
    assert not reply.complete


def test_no_cloud_is_sent_what_the_device_thought() -> None:
    with TalkingCloud(from_cloud) as cloud, client_with(cloud, THOUGHT) as client:
        chat = client.chat()
        chat.respond("2+2?")
        assert chat.messages[1]["reasoning_content"] == "Two and two."
        chat.respond("Really?", prefer="cloud")
    (sent,) = cloud.requests
    assert "Four." in str(sent)
    assert "Two and two" not in str(sent)


def test_what_waits_for_the_cloud_has_no_thoughts_either() -> None:
    message = {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."}
    queued = queued_request([message], Options(), UploadVerdict("allow", ""))
    assert queued.messages == [{"role": "assistant", "content": "Four."}]


def test_the_journal_has_answers_and_no_thoughts(tmp_path: Path) -> None:
    with (
        closing(Journal(tmp_path / "journal.sqlite3", keep_texts=True)) as journal,
        TalkingCloud(from_cloud) as cloud,
        client_with(cloud, THOUGHT, journal=journal) as client,
    ):
        chat = client.chat()
        chat.respond("2+2?")
        chat.respond("Really?")
        texts = [entry.texts for entry in journal.entries()]
    assert [each.local for each in texts if each is not None] == ["Four.", "Four."]
    assert "Two and two" not in str(texts)
