"""A few kept answers are compared with the cloud's, behind the user's back but by her rules."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fake_engine import fake_model
from support.waiting import until

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.cloud_reply import CloudReply
from edgesdk.hybrid.cloud.spending import Cost
from edgesdk.hybrid.cloud.wire import Usage
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.confidence.threshold import Labels
from edgesdk.hybrid.monitor.audits import _MAX_QUEUED, AuditCandidate, Auditor, Audits
from edgesdk.hybrid.monitor.guarantee import CalibrationKey, CalibrationStore
from edgesdk.hybrid.monitor.monitor import Monitor
from edgesdk.hybrid.privacy.policy import Policy, Upload, UploadVerdict
from edgesdk.hybrid.remote import NoCloudAnswer
from edgesdk.hybrid.reply import HybridReply, LocalDraft
from edgesdk.hybrid.request import HybridRequest
from edgesdk.hybrid.storage.journal import DecisionRecord, Journal, JournalEntry
from edgesdk.options import Options
from edgesdk.request import Request

NOW = CalibrationKey("m", "ab" * 32, "", ("big at host",), "c")
BASE = Confidence(threshold=0.7)
# Of 100 labels the surer half is right, and nearly none of the others.
LABELS = Labels(
    tuple(1 - i / 100 for i in range(100)), tuple(i < 50 or i % 10 == 0 for i in range(100))
)


def draft(text: str = "It is 7.", confidence: float = 0.9) -> LocalDraft:
    with HybridClient(fake_model()) as client:
        made = client.respond("Hi").local
    assert made is not None
    return replace(made, text=text, confidence=confidence)


DRAFT = draft()


def kept(upload: Upload = "redact", calibration: str = "x", **changes: Any) -> AuditCandidate:
    messages = [{"role": "user", "content": "Mail ann@x.io: how many?"}]
    request = Request(messages, Options(), lambda messages, specs: [])
    made = AuditCandidate(request, UploadVerdict(upload, "a test"), DRAFT, calibration)
    return replace(made, **changes)


class Asker:
    """Stands for `RemoteModel`: answers, fails, or waits until it is cancelled."""

    def __init__(self, says: str | Exception | None = "7", finish: str = "stop") -> None:
        self.says = says
        self.finish = finish
        self.asked = 0
        self.closed = threading.Event()
        self.cancelled = False
        self.available = True

    def ask(
        self, hybrid: HybridRequest, verdict: UploadVerdict, **named: Any
    ) -> Generator[None, None, HybridReply]:
        self.asked += 1
        yield None
        if self.says is None:
            self.cancelled = hybrid.request.cancellation.wait(30)
            raise NoCloudAnswer("cancelled")
        if isinstance(self.says, Exception):
            raise self.says
        answer = CloudReply(self.says, "", (), self.finish, Usage(5, 2), "big at host", 1)
        return HybridReply(
            answer.text, "cloud", "asked", not answer.complete, cloud=answer, cost=Cost(0.5, 7)
        )

    def close(self) -> None:
        self.closed.set()


class Audited:
    """An auditor, and what came of it."""

    def __init__(self, folder: Path, remote: Asker, audits: Audits, keep_texts: bool) -> None:
        self.remote = remote
        self.journal = Journal(folder / "journal.sqlite", keep_texts=keep_texts)
        self.outcomes: list[DecisionRecord] = []
        self.auditor = Auditor(
            audits,
            remote,  # type: ignore[arg-type]
            Policy(),
            self.journal,
            bundle="ab" * 32,
            on_outcome=self.outcomes.append,
        )

    def entries(self, count: int) -> list[JournalEntry]:
        """Those of the journal, when there are so many."""
        until(lambda: len(list(self.journal.entries())) == count)
        return list(self.journal.entries())


Make = Callable[..., Audited]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Audited] = []

    def one(remote: Asker | None = None, *, keep_texts: bool = False, **changes: Any) -> Audited:
        audits = Audits(**{"share": 1.0, **changes})
        made.append(Audited(tmp_path, remote or Asker(), audits, keep_texts))
        return made[-1]

    yield one
    for each in made:
        each.auditor.close()
        each.journal.close()


def test_an_outcome_is_told_and_written_down(make: Make) -> None:
    one = make(keep_texts=True)
    one.auditor.offer(kept())
    (entry,) = one.entries(1)
    assert one.outcomes == [entry.decision]
    found = entry.decision
    assert (found.route, found.agreed, found.calibration) == ("audit", True, "x")
    assert (found.confidence, found.upload, found.reason) == (0.9, "redact", "the cloud agreed")
    assert (found.endpoint, found.money, found.bundle) == ("big at host", 0.5, "ab" * 32)
    assert (found.prompt_tokens, found.output_tokens) == (5, 2)
    assert "mean_log_probability" in found.signals
    assert entry.texts is not None
    assert (entry.texts.local, entry.texts.cloud, entry.right) == ("It is 7.", "7", True)
    assert json.loads(entry.texts.prompt) == kept().request.messages


def test_without_consent_to_texts_only_the_outcome_is_kept(make: Make, tmp_path: Path) -> None:
    one = make(Asker("The secret is 8"))
    one.auditor.offer(kept())
    (entry,) = one.entries(1)
    assert (entry.decision.agreed, entry.texts) == (False, None)
    one.auditor.close()
    raw = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"ann@x.io" not in raw
    assert b"secret" not in raw


@pytest.mark.parametrize("upload", ["local_only", "ask"])
def test_what_may_not_leave_by_itself_is_not_audited(make: Make, upload: Upload) -> None:
    one = make()
    one.auditor.offer(kept(upload))
    one.auditor.offer(kept("allow"))
    assert [entry.decision.upload for entry in one.entries(1)] == ["allow"]
    assert one.remote.asked == 1


def test_chance_chooses_and_nobody_to_ask_is_no_audit(make: Make) -> None:
    numbers = iter([0.5, 0.02, 0.03, 0.9, 0.0])
    one = make(share=0.03, chance=lambda: next(numbers))
    before = threading.active_count()
    one.auditor.offer(kept(calibration="1"))
    assert threading.active_count() == before
    for name in "2345":
        one.auditor.offer(kept(calibration=name))
    assert [entry.decision.calibration for entry in one.entries(2)] == ["2", "5"]
    nobody = make()
    nobody.remote.available = False
    nobody.auditor.offer(kept())
    nobody.auditor.close()
    assert nobody.remote.asked == 0


@pytest.mark.parametrize(
    ("remote", "reason"),
    [
        (Asker(NoCloudAnswer("budget: money_per_day")), "not audited: budget: money_per_day"),
        (Asker(OSError("ann@x.io")), "not audited: asking failed with OSError"),
        (Asker("7", finish="length"), "not audited: the cloud's answer is not whole"),
        (Asker("7", finish="incomplete"), "not audited: the cloud's answer is not whole"),
    ],
)
def test_what_could_not_be_audited_says_nothing(make: Make, remote: Asker, reason: str) -> None:
    one = make(remote)
    one.auditor.offer(kept())
    (entry,) = one.entries(1)
    assert (entry.decision.agreed, entry.decision.reason) == (None, reason)
    remote.says, remote.finish = "7", "stop"
    one.auditor.offer(kept())
    one.entries(2)
    assert [outcome.agreed for outcome in one.outcomes] == [True]


def test_the_app_may_judge_and_may_fail(make: Make) -> None:
    seen = []

    def judge(messages: Any, local: str, cloud: str) -> bool:
        seen.append((messages[0]["content"], local, cloud))
        if len(seen) > 1:
            raise ValueError(local)
        return False

    one = make(judge=judge)
    one.auditor.offer(kept())
    one.auditor.offer(kept())
    first, second = one.entries(2)
    assert seen[0] == ("Mail ann@x.io: how many?", "It is 7.", "7")
    assert (first.decision.agreed, second.decision.agreed) == (False, None)
    assert second.decision.reason == "not audited: the judge failed with ValueError"
    assert len(one.outcomes) == 1


def test_nobody_waits_for_an_audit_and_closing_ends_it(make: Make) -> None:
    one = make(Asker(None))
    one.auditor.offer(kept())
    until(lambda: one.remote.asked == 1)
    # The cloud says nothing, and yet each of these returns; what does not fit is left out.
    for _ in range(_MAX_QUEUED + 5):
        one.auditor.offer(kept())
    (thread,) = [each for each in threading.enumerate() if each.name == "edgesdk-audits"]
    one.auditor.close()
    assert not thread.is_alive()
    assert one.remote.cancelled
    assert one.remote.closed.is_set()
    one.auditor.close()
    one.auditor.offer(kept())
    assert (one.remote.asked, one.outcomes, one.entries(0)) == (1, [], [])


def test_what_a_listener_does_wrong_ends_no_audits(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    one = make()
    one.auditor._on_outcome = lambda outcome: 1 / 0  # type: ignore[assignment, return-value]
    one.auditor.offer(kept())
    until(lambda: "an audit failed" in caplog.text)
    one.auditor._on_outcome = one.outcomes.append
    one.auditor.offer(kept())
    one.entries(1)


def test_bad_settings() -> None:
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidOption, match="share"):
            Audits(share=share)
    with pytest.raises(InvalidOption, match="need a journal"):
        HybridClient(fake_model(), audits=Audits())


def outcome(calibration: str, confidence: float, agreed: bool) -> DecisionRecord:
    return DecisionRecord(
        0.0, "audit", "", "allow", confidence=confidence, calibration=calibration, agreed=agreed
    )


def outcomes(keeper: Monitor, agreed: list[bool], confidence: float = 0.8) -> None:
    for one in agreed:
        keeper.observe_audit(outcome(keeper.calibration, confidence, one))


def test_audits_that_agree_change_nothing() -> None:
    keeper = Monitor(BASE, NOW)
    keeper.calibrate(LABELS, alpha=0.2, delta=0.05)
    before = keeper.guarantee
    outcomes(keeper, [i % 10 > 0 for i in range(300)])
    assert keeper.guarantee == before
    assert before.status == "holds"


def test_drift_that_audits_show_keeps_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = CalibrationStore(tmp_path)
    keeper = Monitor(BASE, NOW, calibrations=where)
    made = keeper.calibrate(LABELS, alpha=0.2, delta=0.05)
    assert not caplog.records
    # With the good time before, there would seem to be few wrong ones.
    outcomes(keeper, [True] * 200)
    for _ in range(60):
        if keeper.guarantee.status == "holds":
            outcomes(keeper, [False])
    assert keeper.guarantee.status == "drifted"
    assert keeper.guarantee.confidence.threshold > 1
    assert "more answers were wrong than had been promised" in caplog.text
    assert keeper.calibration != made.id
    # The next start knows; only labels make it good.
    again = Monitor(BASE, NOW, calibrations=where)
    assert again.guarantee == keeper.guarantee
    again.calibrate(LABELS, alpha=0.2, delta=0.05)
    assert Monitor(BASE, NOW, calibrations=where).guarantee.status == "holds"


def test_drift_raises_the_threshold_where_audits_allow_it() -> None:
    keeper = Monitor(BASE, NOW)
    old = keeper.calibrate(LABELS, alpha=0.2, delta=0.05).calibration.threshold
    assert old is not None
    first = keeper.calibration
    for i in range(400):
        # Of the surer 60% nearly none is wrong, of the others most are.
        sure = i % 5 < 3
        confidence = 0.9 + i / 10_000 if sure else 0.6
        keeper.observe_audit(outcome(first, confidence, sure or i % 10 == 9))
    guarantee = keeper.guarantee
    assert guarantee.status == "drifted"
    assert guarantee.record is not None
    assert guarantee.record.drifted
    assert 0.9 <= guarantee.confidence.threshold < 1
    assert "Audits showed" in guarantee.phrase()
    # And what is promised now is audited in turn.
    outcomes(keeper, [False] * 40, confidence=0.95)
    assert keeper.guarantee.confidence.threshold > 1


def write(journal: Journal, calibration: str, agreed: bool | None, at: float) -> None:
    decision = DecisionRecord(
        at, "audit", "", "allow", confidence=0.8, calibration=calibration, agreed=agreed
    )
    journal.append(decision, prompt="p")


def test_audits_of_earlier_starts_count(tmp_path: Path) -> None:
    journal, where = Journal(tmp_path / "journal.sqlite"), CalibrationStore(tmp_path)
    first = Monitor(BASE, NOW, calibrations=where, journal=journal)
    made = first.calibrate(LABELS, alpha=0.2, delta=0.05)
    for agreed in (None, *[False] * 5):
        write(journal, made.id, agreed, made.at + 1)
    for _ in range(40):
        write(journal, "another", False, made.at + 1)
    alone = Monitor(BASE, NOW, calibrations=where)
    alone.observe_audit(outcome(made.id, 0.8, False))
    assert alone.guarantee.status == "holds"
    again = Monitor(BASE, NOW, calibrations=where, journal=journal)
    again.observe_audit(outcome(made.id, 0.8, False))
    assert again.guarantee.status == "drifted"
    # An audit by a calibration that was replaced meanwhile says nothing of the new one.
    again.calibrate(LABELS, alpha=0.2, delta=0.05)
    for _ in range(40):
        again.observe_audit(outcome(made.id, 0.8, False))
    assert again.guarantee.status == "holds"


def test_what_another_process_calibrated_or_found_holds_here(tmp_path: Path) -> None:
    one = Monitor(BASE, NOW, calibrations=CalibrationStore(tmp_path))
    one.calibrate(LABELS, alpha=0.2, delta=0.05)
    other = Monitor(BASE, NOW, calibrations=CalibrationStore(tmp_path))
    outcomes(one, [False] * 40)
    assert (one.guarantee.status, other.guarantee.status) == ("drifted", "holds")
    outcomes(other, [True])
    assert other.guarantee.status == "drifted"


def test_prompts_that_became_others_are_told_as_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keeper = Monitor(BASE, NOW)
    keeper.calibrate(LABELS, alpha=0.2, delta=0.05)
    for i in range(300):
        # Neither answers without a token nor those predicted to be wrong are of the labels.
        keeper.observe_draft(replace(DRAFT, confidence=None))
        keeper.observe_draft(replace(DRAFT, confidence=0.1, predicted_wrong=True))
        keeper.observe_draft(replace(DRAFT, confidence=(i % 100) / 100))
    assert not keeper.guarantee.shifted
    for _ in range(300):
        keeper.observe_draft(replace(DRAFT, confidence=0.55))
    assert keeper.guarantee.shifted
    assert keeper.guarantee.status == "holds"
    assert "others than those that were labelled" in keeper.guarantee.phrase()
    assert len([r for r in caplog.records if "distributed" in r.getMessage()]) == 1
    keeper.calibrate(LABELS, alpha=0.2, delta=0.05)
    assert not keeper.guarantee.shifted


def test_replies_are_offered_only_where_confidence_chose(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    offered: list[AuditCandidate] = []
    confidence = Confidence(threshold=0.0, abort_below=0.0)
    with HybridClient(
        fake_model(), journal=journal, audits=Audits(), confidence=confidence
    ) as client:
        auditor = client.path.monitor.auditor
        assert auditor is not None
        auditor.offer = offered.append  # type: ignore[method-assign]
        replies: list[HybridReply] = [
            client.respond("Hi", prefer="local"),
            client.respond("Hi", prefer="cloud"),
            client.respond("Hi", upload="allow"),
        ]
    assert [reply.low_confidence for reply in replies] == [False] * 3
    (one,) = offered
    assert (one.verdict.upload, one.draft) == ("allow", replies[2].local)
