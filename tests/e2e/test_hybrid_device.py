"""What comes before and after the device's draft, with a cloud on a real socket."""

from __future__ import annotations

import dataclasses
import json
import random
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.fake_engine import FakeDecodeState, FakeEngine, fake_model
from support.script_engine import ScriptEngine
from support.scripted_server import HEAD, Script, ScriptedServer, Wait, answer, chunk, status

from edgesdk.errors import ContextOverflow, RequestError
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.cloud_reply import Restart, TextDelta
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.spending import Budget, SpendingLimits
from edgesdk.hybrid.confidence.artifacts import ArtifactStore
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.confidence.linear_models import LogisticRegression
from edgesdk.hybrid.confidence.prompt_classifier import PROMPT_FEATURES, PromptClassifier
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.hybrid.router import Router
from edgesdk.hybrid.self_consistency import SelfConsistency
from edgesdk.hybrid.storage.journal import Journal
from edgesdk.hybrid.stream import HybridEvent
from edgesdk.system.power import PowerState

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("short_pauses")]

BUNDLE = "00" * 32
LONG = bytes(random.Random(0).choices(b"abcdefghijklmnop", k=500))
SURE = Confidence(threshold=0.0, abort_below=0.0)
# Of answers whose probability is 0.39.
BETWEEN = Confidence(threshold=0.6, abort_below=0.3)
COLD = SelfConsistency(temperature=0.01)
PICTURE = {"type": "image_url", "image_url": {"url": "https://x.example/cat.png"}}
SEEN = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, PICTURE]}]
BUSY = status("503 Busy")


def client(
    server: ScriptedServer, engine: FakeEngine, kept: Path | None = None, **changes: Any
) -> HybridClient:
    cloud = Cloud(server.url, "big", "sk-key")
    return HybridClient(fake_model(engine), cloud=cloud, profile=kept, **changes)


def shown(events: Iterable[HybridEvent]) -> str:
    text = ""
    for one in events:
        text = "" if isinstance(one, Restart) else text + one.text
    return text


def hot() -> Router:
    return Router(sensor=lambda: PowerState(celsius=99))


def test_a_picture_goes_to_the_cloud_without_a_draft(tmp_path: Path) -> None:
    engine, journal = FakeEngine(), Journal(tmp_path / "journal.sqlite")
    budget = Budget(SpendingLimits(tokens_per_day=2_000))
    with (
        ScriptedServer([answer("A cat."), BUSY]) as server,
        client(server, engine, journal=journal, confidence=SURE) as hybrid,
    ):
        reply = hybrid.respond(SEEN, upload="allow")
        assert (reply.text, reply.route, reply.rejected_by) == ("A cat.", "cloud", "vision")
        assert server.bodies()[0]["messages"] == SEEN
        with pytest.raises(RequestError, match="Nobody can answer: the prompt has pictures"):
            hybrid.respond(SEEN, upload="allow")
        with pytest.raises(RequestError, match="Nobody can answer"):
            hybrid.respond(SEEN, upload="local_only")
    (written,) = (entry.decision for entry in journal.entries())
    assert (written.rejected_by, written.confidence) == ("vision", None)
    assert "cannot see" in written.reason
    assert engine.states == []
    with (
        ScriptedServer([answer("A cat.")]) as server,
        client(server, engine, budget=budget, confidence=SURE) as hybrid,
    ):
        assert hybrid.respond("What is it?", prefer="cloud", max_tokens=9).route == "cloud"
        with pytest.raises(RequestError, match="Nobody can answer"):
            hybrid.respond(SEEN, upload="allow", max_tokens=9)
        assert len(server.requests) == 1


def test_a_picture_leaves_beside_redacted_texts_only_where_the_policy_says_so() -> None:
    # Its base64 reads as a phone number, which must not be cut out of it.
    bytes_ = {"url": "data:image/png;base64,+14155550123", "detail": "of ann@example.com"}
    sound = {"type": "input_audio", "input_audio": {"data": "+14155550123", "format": "wav"}}
    question = {"type": "text", "text": "Is it ann@example.com?"}
    parts = [question, {"type": "image_url", "image_url": bytes_}, sound]
    asked = [{"role": "user", "content": parts}]
    with ScriptedServer([answer("Yes.")]) as server, client(server, FakeEngine()) as hybrid:
        with pytest.raises(RequestError, match="Nobody can answer"):
            hybrid.respond(asked)
        assert server.requests == []
    policy = Policy(media="redact")
    with (
        ScriptedServer([answer("Yes.")]) as server,
        client(server, FakeEngine(), policy=policy) as hybrid,
    ):
        assert hybrid.respond(asked).route == "cloud"
        (message,) = server.bodies()[0]["messages"]
    words, picture, heard = message["content"]
    assert heard == sound
    assert picture["image_url"]["url"] == bytes_["url"]
    assert "ann@example.com" not in json.dumps([words, picture])


@pytest.mark.parametrize(("script", "route"), [(answer("ok"), "cloud"), (BUSY, "local")])
def test_a_hot_device_is_spared_if_the_cloud_answers(script: Script, route: str) -> None:
    engine = FakeEngine()
    with (
        ScriptedServer([script]) as server,
        client(server, engine, router=hot(), confidence=SURE) as hybrid,
    ):
        reply = hybrid.respond("Hi")
        kept = hybrid.respond("Hi", upload="local_only")
    assert (reply.route, reply.rejected_by, reply.low_confidence) == (
        route,
        "heat",
        route == "local",
    )
    assert reply.reason.startswith("the device is too hot (99 °C)")
    assert reply.text == ("ok" if route == "cloud" else "Hello there.")
    # Nobody else could answer, so no gate was asked.
    assert (kept.text, kept.rejected_by) == ("Hello there.", "")
    assert len(engine.states) == (1 if route == "cloud" else 2)


def test_a_prompt_that_does_not_fit_is_the_clouds() -> None:
    engine = FakeEngine(context_length=64)
    with ScriptedServer([answer("ok"), BUSY]) as server, client(server, engine) as hybrid:
        assert hybrid.respond("x" * 200).rejected_by == "context"
        with pytest.raises(ContextOverflow):
            hybrid.respond("x" * 200)


def test_what_was_learned_of_the_model_is_used_by_itself(tmp_path: Path) -> None:
    kept = ArtifactStore(tmp_path)
    # Hopeless from the fourth token on.
    Confidence(threshold=0.5, abort_below=0.45, decide_after=4).save(kept, BUNDLE)
    ones = (1.0,) * len(PROMPT_FEATURES)
    digits = tuple(-100.0 * (name == "digits") for name in PROMPT_FEATURES)
    PromptClassifier(
        LogisticRegression(PROMPT_FEATURES, tuple(0.0 for _ in PROMPT_FEATURES), ones, digits, 5.0),
        0.5,
        100,
        0.9,
    ).save(kept, BUNDLE)
    engine = FakeEngine(LONG)
    with ScriptedServer([answer("ok")]) as server:
        with client(server, engine, tmp_path) as hybrid:
            reply = hybrid.respond("Hello, you")
            assert reply.local is not None
            assert (reply.route, reply.local.aborted) == ("cloud", True)
            assert len(reply.local.text) < 20
            assert hybrid.respond("123 + 456").rejected_by == "prompt"
        with client(server, FakeEngine(b"x"), tmp_path, confidence=SURE) as hybrid:
            assert hybrid.respond("Hello, you").route == "local"
    assert len(engine.states) == 1


def test_a_regression_that_was_kept_judges_answers(tmp_path: Path) -> None:
    from edgesdk.hybrid.confidence.confidence import SIGNAL_NAMES as SIGNALS

    short = tuple(-1.0 * (name == "length") for name in SIGNALS)
    zeros, ones = (0.0,) * len(SIGNALS), (1.0,) * len(SIGNALS)
    regression = LogisticRegression(SIGNALS, zeros, ones, short, 9.0)
    Confidence(regression, threshold=0.5, abort_below=0.0).save(ArtifactStore(tmp_path), BUNDLE)
    with ScriptedServer([answer("ok")]) as server:
        with client(server, FakeEngine(b"Yes."), tmp_path) as hybrid:
            assert hybrid.respond("Hi").route == "local"
        with client(server, FakeEngine(b"Well, perhaps."), tmp_path) as hybrid:
            assert hybrid.respond("Hi").route == "cloud"


def test_tries_that_agree_save_the_cloud(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    engine = ScriptEngine(("It is 7.", "I say 7.", "7", "7."), probability=0.39)
    with (
        ScriptedServer([answer("ok")]) as server,
        client(
            server, engine, self_consistency=COLD, confidence=BETWEEN, journal=journal
        ) as hybrid,
    ):
        stream = hybrid.stream("Hi")
        assert shown(stream) == stream.reply.text == "It is 7."
        assert server.requests == []
    assert (stream.reply.route, stream.reply.low_confidence) == ("local", False)
    assert stream.reply.reason == "sure enough after 4 answers"
    (written,) = (entry.decision for entry in journal.entries())
    assert (written.signals["agreement"], written.signals["answers"]) == (1.0, 4)


@pytest.mark.parametrize("down", [False, True])
def test_tries_that_differ_ask_the_cloud(down: bool) -> None:
    # Two of three others agree in the end, which would do if it were all three.
    engine = ScriptEngine(("It is 7.", "It is 8.", "It is 8.", "It is 9."), probability=0.39)
    loose = dataclasses.replace(BETWEEN, threshold=0.52)
    with (
        ScriptedServer([BUSY if down else answer("ok")]) as server,
        client(server, engine, self_consistency=COLD, confidence=loose) as hybrid,
    ):
        stream = hybrid.stream("Hi")
        # Where the cloud is down, the device's best stays, and is marked.
        assert shown(stream) == stream.reply.text == ("It is 8." if down else "ok")
    assert "unsure (0.36 after 4 answers)" in stream.reply.reason
    assert stream.reply.low_confidence == down


def test_nobody_tries_again_where_nobody_could_be_asked() -> None:
    engine = ScriptEngine(("7", "7"), probability=0.39)
    with ScriptedServer([answer("ok")]) as server:
        with client(server, engine, self_consistency=COLD, confidence=BETWEEN) as hybrid:
            reply = hybrid.respond("Hi", upload="local_only")
            assert (reply.low_confidence, len(engine.prompts)) == (True, 1)
        alone = dataclasses.replace(COLD, without_cloud=True)
        with client(server, engine, self_consistency=alone, confidence=BETWEEN) as hybrid:
            reply = hybrid.respond("Hi", upload="local_only")
            assert (reply.low_confidence, len(engine.prompts)) == (False, 5)
        assert server.requests == []


def test_a_draft_can_be_cancelled_from_another_thread() -> None:
    reached, found = threading.Event(), []

    def wait(state: FakeDecodeState) -> None:
        if len(state.tokens) > 12:
            reached.set()
            assert state.interrupted.wait(30)

    engine = FakeEngine(b"Hello there.", before_extend=wait)
    with (
        ScriptedServer([answer("ok")]) as server,
        client(server, engine, confidence=BETWEEN) as hybrid,
    ):
        stream = hybrid.stream("Hi")
        reader = threading.Thread(target=lambda: found.append(shown(stream)), daemon=True)
        reader.start()
        assert reached.wait(30)
        stream.cancel()
        reader.join(30)
        assert not reader.is_alive()
        assert server.requests == []
    assert stream.reply.text == found[0]
    assert "Hello there.".startswith(found[0])
    assert (stream.reply.reason, stream.reply.low_confidence) == ("cancelled", True)


@pytest.mark.parametrize("script", [[HEAD, chunk("The an"), Wait(60)], [HEAD, Wait(60)]])
def test_the_clouds_answer_can_be_cancelled_from_another_thread(script: Script) -> None:
    found: list[str] = []
    came = threading.Event()

    with (
        ScriptedServer([script]) as server,
        client(server, FakeEngine(b"No idea."), confidence=BETWEEN) as hybrid,
    ):
        stream = hybrid.stream("Hi")

        def read() -> None:
            text = ""
            for one in stream:
                text = "" if isinstance(one, Restart) else text + one.text
                if one == TextDelta("The an"):
                    came.set()
            found.append(text)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        if len(script) == 3:
            assert came.wait(30)
        else:
            while not server.requests:
                came.wait(0.01)
        stream.cancel()
        reader.join(30)
        assert not reader.is_alive()
    assert found == [stream.reply.text]
    assert "cancelled" in stream.reply.reason
    assert found[0] == ("The an" if len(script) == 3 else "No idea.")
