"""A device's answer that went in a cycle is not trusted, however sure its tokens were."""

from __future__ import annotations

import pytest
from support.fake_engine import FakeEngine, fake_model
from support.scripted_server import ScriptedServer, answer

from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.privacy.policy import Policy

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("short_pauses")]

_SURE = Confidence(threshold=0.0, abort_below=0.0)
_ENDLESS = b"It is a city. " * 100


def test_it_is_escalated() -> None:
    with ScriptedServer([answer("Paris.")]) as server:
        cloud = Cloud(server.url, "big", "sk-key")
        model = fake_model(FakeEngine(_ENDLESS))
        with HybridClient(model, cloud=cloud, confidence=_SURE) as client:
            reply = client.respond("What is the capital of France?")

    assert (reply.text, reply.route) == ("Paris.", "cloud")
    assert reply.local is not None
    assert reply.local.receipt.finish_reason == "repetition"


def test_where_no_cloud_may_answer_it_is_marked() -> None:
    with ScriptedServer([answer("Paris.")]) as server:
        cloud = Cloud(server.url, "big", "sk-key")
        model = fake_model(FakeEngine(_ENDLESS))
        policy = Policy("local_only")
        with HybridClient(model, cloud=cloud, confidence=_SURE, policy=policy) as client:
            stream = client.stream("What is the capital of France?")
            shown = "".join(getattr(event, "text", "") for event in stream)
            reply = stream.reply
        assert server.requests == []

    assert shown == reply.text
    assert reply.text.rstrip() == "It is a city."
    assert (reply.route, reply.finish_reason) == ("local", "repetition")
    assert reply.low_confidence
    assert not reply.complete
