"""A promise is about answers as they are made: with tries, and without what gates turn down."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_engine import FakeDecodeState, fake_model
from support.sure_engine import SureEngine

from edgesdk.errors import RequestError
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.confidence.confidence import SIGNAL_NAMES, Confidence
from edgesdk.hybrid.confidence.linear_models import LogisticRegression
from edgesdk.hybrid.confidence.prompt_classifier import PROMPT_FEATURES as FEATURES
from edgesdk.hybrid.confidence.prompt_classifier import PromptClassifier
from edgesdk.hybrid.confidence.threshold import labels_in_journal
from edgesdk.hybrid.router import Router
from edgesdk.hybrid.self_consistency import SelfConsistency
from edgesdk.hybrid.storage.journal import DecisionRecord, Journal
from edgesdk.system.power import PowerState

SURENESS = [0.9 - 0.01 * i for i in range(60)]
ANSWERS = {f"<{i}>": ("7" if i < 40 else "8", sure) for i, sure in enumerate(SURENESS)}
LABELLED = [(f"How many? <{i}>", "7") for i in range(60)]
# Between two sureness each, so that no rounding matters.
BASE = Confidence(threshold=0.695, abort_below=0.395)
COLD = SelfConsistency(temperature=0.01)
# It is never asked: whether it could be decides how answers are made.
CLOUD = Cloud("https://cloud.example/v1", "big", "key")
PLAIN = LogisticRegression(FEATURES, (0.0,) * len(FEATURES), (1.0,) * len(FEATURES),
                           (0.0,) * len(FEATURES), 9.0)  # fmt: skip


def client(engine: SureEngine | None = None, **changes: Any) -> HybridClient:
    model = fake_model(engine or SureEngine(ANSWERS))
    settings = {"cloud": CLOUD, "confidence": BASE}
    return HybridClient(model, **{**settings, **changes})


def fifties(messages: Any) -> Any:
    return "cloud" if "<5" in messages[-1]["content"] else None


def test_a_calibration_makes_the_same_effort() -> None:
    made = client(self_consistency=COLD).calibrate(LABELLED)
    # The tries of this engine all agree.
    wanted = [(sure + 1) / 2 if 0.395 <= sure < 0.695 else sure for sure in SURENESS]
    np.testing.assert_allclose(made.confidences, wanted, atol=1e-4)
    np.testing.assert_allclose(client().calibrate(LABELLED).confidences, SURENESS, atol=1e-4)
    # Without a cloud there is no such effort, unless it is asked for.
    without_cloud = client(cloud=(), self_consistency=COLD).calibrate(LABELLED)
    np.testing.assert_allclose(without_cloud.confidences, SURENESS, atol=1e-4)


def test_what_a_gate_turns_down_is_passed_over() -> None:
    hot = Router(hint=fifties, sensor=lambda: PowerState(celsius=99))
    made = client(router=hot).calibrate(LABELLED)
    # How the device is while it calibrates says nothing about the prompts.
    assert (made.calibration.labels, made.skipped) == (49, 11)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"self_consistency": COLD}, "holds"),
        ({}, "stale"),
        ({"self_consistency": replace(COLD, tries=5)}, "stale"),
        ({"self_consistency": replace(COLD, similarity=lambda one, other: 1.0)}, "stale"),
        ({"self_consistency": COLD, "router": Router(hint=fifties)}, "stale"),
        (
            {
                "self_consistency": COLD,
                "router": Router(classifier=PromptClassifier(PLAIN, 0.5, 9, 0.9)),
            },
            "stale",
        ),
        ({"self_consistency": COLD, "router": Router(max_celsius=50)}, "holds"),
        # Where the app's own threshold decides which drafts are tried again, it matters.
        ({"self_consistency": COLD, "confidence": replace(BASE, threshold=0.8)}, "stale"),
    ],
)
def test_other_habits_need_another_calibration(
    change: dict[str, Any], status: str, tmp_path: Path
) -> None:
    client(profile=tmp_path, self_consistency=COLD).calibrate(LABELLED)
    assert client(profile=tmp_path, **change).guarantee.status == status


def test_tries_of_a_calibration_can_be_cancelled() -> None:
    engine, cancel, extended = SureEngine(ANSWERS), threading.Event(), []

    def before_extend(state: FakeDecodeState) -> None:
        extended.append(state)
        # The draft takes two calls: its prompt, and its token.
        if len(extended) == 3:
            cancel.set()

    engine.before_extend = before_extend
    with pytest.raises(RequestError, match="cancelled after 0 prompts"):
        client(engine, self_consistency=COLD).calibrate([("<30>", "7")], cancel=cancel)
    assert len(extended) < 8
    assert all(state.closed for state in engine.states)


def test_no_effort_where_nothing_can_be_kept() -> None:
    ours = client(cloud=(), self_consistency=replace(COLD, without_cloud=True))
    before = ours.respond("<30>")
    assert before.local is not None
    assert (before.local.answers, before.low_confidence) == (4, False)
    assert ours.calibrate(LABELLED[:5]).calibration.threshold is None
    after = ours.respond("<30>")
    assert after.local is not None
    assert (after.local.answers, after.low_confidence) == (1, True)


def test_agreement_of_a_journal_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    signals = {**dict.fromkeys(SIGNAL_NAMES, 1.0), "log_odds": 0.0}
    for more in ({}, {"agreement": 1.0, "answers": 4.0}):
        decision = DecisionRecord(
            0.0, "local", "", "allow", signals={**signals, **more}, bundle="b"
        )
        journal.label(journal.append(decision, prompt="p"), True)
    labels = labels_in_journal(journal.entries(), BASE, bundle="b")
    assert labels.confidences == pytest.approx((0.5, 0.75))
    assert labels.skipped == 0
