"""What waits in the queue is sent in its turn, once, and waits on where it cannot be."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from support.offline_queues import Clock, queue_at, request, texts

from edgesdk.errors import InvalidOption, TemplateError
from edgesdk.hybrid.cloud.cloud_reply import CloudReply
from edgesdk.hybrid.cloud.spending import Cost
from edgesdk.hybrid.offline.queue import QueuedRequest, defer, send_queued
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.hybrid.remote import NoCloudAnswer
from edgesdk.hybrid.reply import HybridReply
from edgesdk.options import Options
from edgesdk.request import Request
from edgesdk.structured.output_format import OutputFormat


def reply_of(held: QueuedRequest, finish: str = "stop") -> HybridReply:
    text = held.messages[0]["content"].upper()
    return HybridReply(text, "cloud", "cause", cloud=CloudReply(text, "", (), finish, None, "m", 1))


def test_each_is_sent_each_once_in_order(tmp_path: Path) -> None:
    queue = queue_at(tmp_path)
    for text in "abc":
        queue.put(request(text))
    sent: list[str] = []
    keys: set[str] = set()

    def send(one: QueuedRequest, seconds: float, key: str) -> HybridReply:
        keys.add(key)
        assert 0 < seconds < 300
        sent.append(one.messages[0]["content"])
        return reply_of(one)

    found = []
    for late in send_queued(queue, send):
        # Who reads slowly keeps no other from what is left.
        assert [one.id for one in queue.entries()] == list(range(late.id + 1, 4))
        found.append((late.id, late.messages[0]["content"], late.reply.text, late.asked_at))
    assert found == [(i + 1, text, text.upper(), Clock().now) for i, text in enumerate("abc")]
    assert sent == list("abc")
    assert len(keys) == 3
    assert list(send_queued(queue, send)) == []


def test_nothing_is_sent_before_somebody_reads(tmp_path: Path) -> None:
    queue = queue_at(tmp_path)
    for text in "ab":
        queue.put(request(text))
    sent: list[QueuedRequest] = []

    def send(one: QueuedRequest, seconds: float, key: str) -> HybridReply:
        sent.append(one)
        return reply_of(one)

    answers = send_queued(queue, send)
    assert sent == []
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert sent == [request("a")]
    assert texts(queue) == ["b"]


@pytest.mark.parametrize(
    ("cause", "left", "sent"),
    [
        ("policy", [], "abc"),
        ("unfit", [], "abc"),
        ("budget", ["b"], "abc"),
        ("failed", ["b"], "abc"),
        ("away", ["b", "c"], "ab"),
    ],
)
def test_what_is_not_sent_now(tmp_path: Path, cause: str, left: list[str], sent: str) -> None:
    queue = queue_at(tmp_path)
    for text in "abc":
        queue.put(request(text))
    tried = []

    def send(one: QueuedRequest, seconds: float, key: str) -> HybridReply:
        tried.append(one.messages[0]["content"])
        if tried[-1] == "b":
            raise NoCloudAnswer("because", cause)  # type: ignore[arg-type]
        return reply_of(one)

    got = [late.reply.text for late in send_queued(queue, send)]
    if cause in ("policy", "unfit"):
        assert got == ["A", "C"]
    assert "".join(tried) == sent
    assert texts(queue) == left


def test_an_empty_answer_is_paid_for_a_few_times_and_then_has_failed(tmp_path: Path) -> None:
    queue = queue_at(tmp_path)
    for text in "ab":
        queue.put(request(text))
    asked: list[str] = []

    def send(one: QueuedRequest, seconds: float, key: str) -> HybridReply:
        text = one.messages[0]["content"]
        asked.append(text)
        if text == "a":
            raise NoCloudAnswer("the cloud said nothing", cost=Cost(0.01, 20))
        # What costs nothing is no attempt, however often.
        raise NoCloudAnswer("the cloud refused (401)")

    for _ in range(5):
        assert list(send_queued(queue, send)) == []
    assert asked.count("a") == 3
    assert asked.count("b") == 5
    failed, waiting = queue.entries()
    assert (failed.id, failed.attempts, failed.failed) == (1, 3, "the cloud said nothing")
    assert (waiting.id, waiting.attempts, waiting.failed) == (2, 0, None)
    assert texts(queue) == ["b"]
    # What has failed keeps no text.
    with sqlite3.connect(tmp_path / "q") as database:
        assert database.execute("SELECT encrypted FROM requests WHERE id = 1").fetchone() == (b"",)


def test_how_often_is_the_queues_to_say(tmp_path: Path) -> None:
    queue = queue_at(tmp_path, max_attempts=1)
    queue.put(request("a"))
    claim = queue.claim()
    assert claim is not None
    assert claim.unanswered("nothing came")
    assert [entry.failed for entry in queue.entries()] == ["nothing came"]
    with pytest.raises(InvalidOption, match="max_attempts must be more than 0"):
        queue_at(tmp_path, max_attempts=0)


def test_an_answer_that_broke_off_is_none(tmp_path: Path) -> None:
    queue = queue_at(tmp_path)
    queue.put(request("a"))
    for finish in ("incomplete", "deadline"):
        assert list(send_queued(queue, lambda one, *_, end=finish: reply_of(one, end))) == []  # type: ignore[misc]
    assert texts(queue) == ["a"]


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_one_that_another_time_would_cut_too_is_given_out(tmp_path: Path, finish: str) -> None:
    queue = queue_at(tmp_path)
    queue.put(request("a"))
    (late,) = send_queued(queue, lambda one, *_: reply_of(one, finish))
    assert (late.reply.text, late.reply.complete) == ("A", False)
    assert texts(queue) == []


def test_an_error_leaves_the_request_to_others(tmp_path: Path) -> None:
    queue = queue_at(tmp_path)
    queue.put(request("a"))
    keys: list[str] = []

    def send(one: QueuedRequest, seconds: float, key: str) -> HybridReply:
        keys.append(key)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            next(send_queued(queue, send))
    assert texts(queue) == ["a"]
    # To the cloud it is the same request each time.
    assert keys[0] == keys[1]


def test_one_that_cannot_be_sent_keeps_no_other_waiting(tmp_path: Path) -> None:
    queue = queue_at(tmp_path)
    queue.put(request("a"))
    queue.put(request("b"))

    def send(one: QueuedRequest, seconds: float, key: str) -> HybridReply:
        if one == request("a"):
            raise TemplateError("The model of now has no template.")
        return reply_of(one)

    assert [late.id for late in send_queued(queue, send)] == [2]
    assert texts(queue) == ["a"]


def test_an_answer_that_came_too_late_is_not_given_out(tmp_path: Path) -> None:
    clock = Clock()
    queue, other = queue_at(tmp_path, clock), queue_at(tmp_path, clock)
    queue.put(request("a"))
    others = []

    def slow(one: QueuedRequest, seconds: float, key: str) -> HybridReply:
        clock.now += 301
        others.extend(send_queued(other, lambda one, *_: reply_of(one)))
        return reply_of(one)

    assert list(send_queued(queue, slow)) == []
    assert [late.id for late in others] == [1]


def test_only_what_another_time_may_answer_is_kept(tmp_path: Path) -> None:
    queue = queue_at(tmp_path)
    plain = Request([{"role": "user", "content": "a"}], Options(), lambda messages, specs: [])
    verdict = Policy().evaluate(plain.messages)
    for cause in ("policy", "budget", "unfit", "failed"):
        assert defer(queue, cause, plain, verdict) is None  # type: ignore[arg-type]
    # What checks an answer of a form is code, which cannot wait.
    formed = replace(plain, output_format=OutputFormat(None, str))
    assert defer(queue, "away", formed, verdict) is None
    assert defer(None, "away", plain, verdict) is None
    assert defer(queue, "away", plain, verdict) == 1
    assert texts(queue) == ["a"]
    # An answer does not depend on the queue.
    queue.close()
    assert defer(queue, "away", plain, verdict) is None
