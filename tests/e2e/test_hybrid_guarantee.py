"""Calibrated, audited, taken back: a client's promise over real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_engine import fake_model
from support.scripted_server import HEAD, Script, ScriptedServer, Wait, answer
from support.sure_engine import SureEngine
from support.waiting import until

from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.spending import Budget, Cost, SpendingLimits
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.monitor.audits import Audits
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.hybrid.storage.journal import Journal, JournalEntry

pytestmark = pytest.mark.e2e

# Sure of the first, unsure of the second, and right where it is sure.
ENGINE = {"sure": ("It is 7.", 0.9), "hard": ("It is 8.", 0.5)}
LABELLED = [(f"a {kind} one, {i}", "7") for i in range(40) for kind in ("sure", "hard")]
# Above all of these, so that only a calibration lets an answer stay.
STRICT = Confidence(threshold=0.95, abort_below=0.0)


def client(server: ScriptedServer, folder: Path, **changes: Any) -> HybridClient:
    there = Cloud(server.url, "big", "sk-key", input_price=1.0, output_price=1.0)
    settings: dict[str, Any] = {
        "cloud": there,
        "confidence": STRICT,
        "profile": folder,
        "journal": Journal(folder / "journal.sqlite"),
        **changes,
    }
    return HybridClient(fake_model(SureEngine(ENGINE)), **settings)


def audits_in(folder: Path, true: Callable[[list[JournalEntry]], bool]) -> list[JournalEntry]:
    """Those of the journal, once they are as they should be."""
    journal = Journal(folder / "journal.sqlite")
    until(lambda: true(list(journal.entries(route="audit"))))
    return list(journal.entries(route="audit"))


def test_a_promise_is_made_kept_audited_and_taken_back(tmp_path: Path) -> None:
    with ScriptedServer([answer("It is 7.")]) as server:
        with client(server, tmp_path) as first:
            assert first.respond("a sure one", upload="local_only").low_confidence
            made = first.calibrate(LABELLED)
            assert (made.calibration.kept, made.calibration.labels) == (40, 80)
        assert server.requests == []

        with client(server, tmp_path, audits=Audits(share=1.0)) as second:
            assert second.guarantee.status == "holds"
            kept = second.respond("a sure one for ann@x.io")
            assert (kept.text, kept.route, kept.cost) == ("It is 7.", "local", Cost())
            (entry,) = audits_in(tmp_path, lambda found: len(found) == 1)
        assert (entry.decision.agreed, entry.decision.kinds) == (True, ("EMAIL",))
        assert entry.decision.calibration == made.id
        (sent,) = server.bodies()
        assert "sure one" in json.dumps(sent)
        assert "ann@x.io" not in json.dumps(sent)

    with ScriptedServer([answer("It is 9.")]) as server:
        # Another port is another cloud; under its name alone the promise would be stale.
        with client(server, tmp_path, audits=Audits(share=1.0)) as third:
            assert third.guarantee.status == "stale"
            assert "the cloud changed" in third.guarantee.phrase()
            assert third.respond("a sure one").route == "cloud"
            third.calibrate(LABELLED)
            for number in range(1, 30):
                assert third.respond("a sure one").text in ("It is 7.", "It is 9.")
                if third.guarantee.status == "drifted":
                    break
                wanted = number + 1
                audits_in(tmp_path, lambda found, wanted=wanted: len(found) >= wanted)  # type: ignore[misc]
            until(lambda: third.guarantee.status == "drifted")
            gone = third.respond("a sure one")
        assert (gone.route, gone.text) == ("cloud", "It is 9.")
        with client(server, tmp_path) as fourth:
            assert fourth.guarantee.status == "drifted"


def test_an_audit_delays_no_answer_and_close_ends_it(tmp_path: Path) -> None:
    stalled: Script = [HEAD, Wait(600)]
    with ScriptedServer([stalled]) as server:
        with client(server, tmp_path, audits=Audits(share=1.0)) as ours:
            ours.calibrate(LABELLED)
            # The cloud never ends its answer; each of these would wait for it for ever.
            replies = [ours.respond("a sure one") for _ in range(3)]
            until(lambda: len(server.requests) == 1)
        assert [reply.text for reply in replies] == ["It is 7."] * 3
        assert not any(each.name == "edgesdk-audits" for each in threading.enumerate())
    assert audits_in(tmp_path, lambda found: True) == []


@pytest.mark.parametrize(
    "policy",
    [Policy("local_only"), Policy("ask", ask=lambda question: True), Policy(tags={"t": "ask"})],
)
def test_what_the_policy_keeps_here_is_not_audited(tmp_path: Path, policy: Policy) -> None:
    with ScriptedServer([answer("It is 7.")]) as server:
        with client(server, tmp_path, policy=policy, audits=Audits(share=1.0)) as ours:
            ours.calibrate(LABELLED)
            for _ in range(3):
                assert ours.respond("a sure one", tags=("t",)).route == "local"
        assert server.requests == []
    assert audits_in(tmp_path, lambda found: True) == []


def test_audits_stay_within_the_budget(tmp_path: Path) -> None:
    budget = Budget(SpendingLimits(tokens_per_day=1_000))
    with ScriptedServer([answer("It is 7.")]) as server:
        with client(server, tmp_path, budget=budget, audits=Audits(share=1.0)) as ours:
            ours.calibrate(LABELLED)
            # Each may cost 900 tokens at worst, and costs 4.
            ours.respond("a sure one", max_tokens=850)
            audits_in(tmp_path, lambda found: len(found) == 1)
            assert (budget.spent().money, budget.spent().tokens) == (pytest.approx(4e-6), 4)
            assert ours.respond("a sure one", max_tokens=2_000).text == "It is 7."
            _, refused = audits_in(tmp_path, lambda found: len(found) == 2)
        assert refused.decision.reason == "not audited: budget: tokens_per_day"
        assert len(server.requests) == 1
