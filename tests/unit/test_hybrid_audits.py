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

from edgesdk.decode.options import Options
from edgesdk.errors import InvalidOption
from edgesdk.hybrid.answering import Asked, NotAsked
from edgesdk.hybrid.ask import Ask
from edgesdk.hybrid.auditing import _WAITING, Auditor, Audits, KeptAnswer
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.answer import CloudAnswer
from edgesdk.hybrid.cloud.chunks import Usage
from edgesdk.hybrid.privacy.policy import Policy, Upload, Verdict
from edgesdk.hybrid.promise import Outcome, PromiseKeeper
from edgesdk.hybrid.records.decision import Decision
from edgesdk.hybrid.records.journal import Entry, Journal
from edgesdk.hybrid.reply import HybridReply, LocalDraft
from edgesdk.hybrid.spending.limits import Cost
from edgesdk.hybrid.trust.calibrating import Labels
from edgesdk.hybrid.trust.calibrations import Calibrations, Circumstances
from edgesdk.hybrid.trust.confidence import Confidence
from edgesdk.hybrid.trust.kept import Kept

NOW = Circumstances("m", "ab" * 32, "", ("big at host",), "c")
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


def kept(upload: Upload = "redact", calibration: str = "x", **changes: Any) -> KeptAnswer:
    messages = [{"role": "user", "content": "Mail ann@x.io: how many?"}]
    made = KeptAnswer(messages, Options(), Verdict(upload, "a test"), DRAFT, calibration)
    return replace(made, **changes)


class Asker:
    """Stands for `CloudAsker`: answers, fails, or waits until it is cancelled."""

    def __init__(self, says: str | Exception | None = "7", finish: str = "stop") -> None:
        self.says = says
        self.finish = finish
        self.asked = 0
        self.closed = threading.Event()
        self.cancelled = False
        self.possible = True

    def ask(self, ask: Ask, verdict: Verdict, **named: Any) -> Generator[None, None, Asked]:
        self.asked += 1
        yield None
        if self.says is None:
            self.cancelled = ask.cancel.wait(30)
            raise NotAsked("cancelled")
        if isinstance(self.says, Exception):
            raise self.says
        answer = CloudAnswer(self.says, "", (), self.finish, Usage(5, 2), "big at host", 1)
        return Asked(answer, Cost(0.5, 7))

    def close(self) -> None:
        self.closed.set()


class Audited:
    """An auditor, and what came of it."""

    def __init__(self, folder: Path, asker: Asker, audits: Audits, keep_texts: bool) -> None:
        self.asker = asker
        self.journal = Journal(folder / "journal.sqlite", keep_texts=keep_texts)
        self.outcomes: list[Outcome] = []
        self.auditor = Auditor(
            audits,
            asker,  # type: ignore[arg-type]
            Policy(),
            self.journal,
            bundle="ab" * 32,
            found=self.outcomes.append,
        )

    def entries(self, count: int) -> list[Entry]:
        """Those of the journal, when there are so many."""
        until(lambda: len(list(self.journal.entries())) == count)
        return list(self.journal.entries())


Make = Callable[..., Audited]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Audited] = []

    def one(asker: Asker | None = None, *, keep_texts: bool = False, **changes: Any) -> Audited:
        audits = Audits(**{"share": 1.0, **changes})
        made.append(Audited(tmp_path, asker or Asker(), audits, keep_texts))
        return made[-1]

    yield one
    for each in made:
        each.auditor.close()
        each.journal.close()


def test_an_outcome_is_told_and_written_down(make: Make) -> None:
    one = make(keep_texts=True)
    one.auditor.offer(kept())
    (entry,) = one.entries(1)
    assert one.outcomes == [Outcome("x", 0.9, True)]
    found = entry.decision
    assert (found.route, found.agreed, found.calibration) == ("audit", True, "x")
    assert (found.confidence, found.upload, found.reason) == (0.9, "redact", "the cloud agreed")
    assert (found.endpoint, found.money, found.bundle) == ("big at host", 0.5, "ab" * 32)
    assert (found.prompt_tokens, found.output_tokens) == (5, 2)
    assert "mean_log_probability" in found.signals
    assert entry.texts is not None
    assert (entry.texts.local, entry.texts.cloud, entry.right) == ("It is 7.", "7", True)
    assert json.loads(entry.texts.prompt) == kept().messages


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
    assert one.asker.asked == 1


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
    nobody.asker.possible = False
    nobody.auditor.offer(kept())
    nobody.auditor.close()
    assert nobody.asker.asked == 0


@pytest.mark.parametrize(
    ("asker", "reason"),
    [
        (Asker(NotAsked("budget: money_per_day")), "not audited: budget: money_per_day"),
        (Asker(OSError("ann@x.io")), "not audited: asking failed with OSError"),
        (Asker("7", finish="length"), "not audited: the cloud's answer is not whole"),
        (Asker("7", finish="incomplete"), "not audited: the cloud's answer is not whole"),
    ],
)
def test_what_could_not_be_audited_says_nothing(make: Make, asker: Asker, reason: str) -> None:
    one = make(asker)
    one.auditor.offer(kept())
    (entry,) = one.entries(1)
    assert (entry.decision.agreed, entry.decision.reason) == (None, reason)
    asker.says, asker.finish = "7", "stop"
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
    until(lambda: one.asker.asked == 1)
    # The cloud says nothing, and yet each of these returns; what does not fit is left out.
    for _ in range(_WAITING + 5):
        one.auditor.offer(kept())
    (thread,) = [each for each in threading.enumerate() if each.name == "edgesdk-audits"]
    one.auditor.close()
    assert not thread.is_alive()
    assert one.asker.cancelled
    assert one.asker.closed.is_set()
    one.auditor.close()
    one.auditor.offer(kept())
    assert (one.asker.asked, one.outcomes, one.entries(0)) == (1, [], [])


def test_what_a_listener_does_wrong_ends_no_audits(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    one = make()
    one.auditor._found = lambda outcome: 1 / 0  # type: ignore[assignment, return-value]
    one.auditor.offer(kept())
    until(lambda: "an audit failed" in caplog.text)
    one.auditor._found = one.outcomes.append
    one.auditor.offer(kept())
    one.entries(1)


def test_bad_settings() -> None:
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidOption, match="share"):
            Audits(share=share)
    with pytest.raises(InvalidOption, match="need a journal"):
        HybridClient(fake_model(), audits=Audits())


def outcomes(keeper: PromiseKeeper, agreed: list[bool], confidence: float = 0.8) -> None:
    for one in agreed:
        keeper.audited(Outcome(keeper.calibration, confidence, one))


def test_audits_that_agree_change_nothing() -> None:
    keeper = PromiseKeeper(BASE, NOW)
    keeper.calibrate(LABELS, alpha=0.2, delta=0.05)
    before = keeper.promise
    outcomes(keeper, [i % 10 > 0 for i in range(300)])
    assert keeper.promise == before
    assert before.standing == "holds"


def test_drift_that_audits_show_keeps_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = Calibrations(Kept(tmp_path))
    keeper = PromiseKeeper(BASE, NOW, calibrations=where)
    made = keeper.calibrate(LABELS, alpha=0.2, delta=0.05)
    assert not caplog.records
    # With the good time before, there would seem to be few wrong ones.
    outcomes(keeper, [True] * 200)
    for _ in range(60):
        if keeper.promise.standing == "holds":
            outcomes(keeper, [False])
    assert keeper.promise.standing == "drifted"
    assert keeper.promise.confidence.threshold > 1
    assert "more answers were wrong than had been promised" in caplog.text
    assert keeper.calibration != made.id
    # The next start knows; only labels make it good.
    again = PromiseKeeper(BASE, NOW, calibrations=where)
    assert again.promise == keeper.promise
    again.calibrate(LABELS, alpha=0.2, delta=0.05)
    assert PromiseKeeper(BASE, NOW, calibrations=where).promise.standing == "holds"


def test_drift_raises_the_threshold_where_audits_allow_it() -> None:
    keeper = PromiseKeeper(BASE, NOW)
    old = keeper.calibrate(LABELS, alpha=0.2, delta=0.05).calibration.threshold
    assert old is not None
    first = keeper.calibration
    for i in range(400):
        # Of the surer 60% nearly none is wrong, of the others most are.
        sure = i % 5 < 3
        confidence = 0.9 + i / 10_000 if sure else 0.6
        keeper.audited(Outcome(first, confidence, sure or i % 10 == 9))
    promise = keeper.promise
    assert promise.standing == "drifted"
    assert promise.calibrated is not None
    assert promise.calibrated.drifted
    assert 0.9 <= promise.confidence.threshold < 1
    assert "Audits showed" in promise.phrase()
    # And what is promised now is audited in turn.
    outcomes(keeper, [False] * 40, confidence=0.95)
    assert keeper.promise.confidence.threshold > 1


def write(journal: Journal, calibration: str, agreed: bool | None, at: float) -> None:
    decision = Decision(
        at, "audit", "", "allow", confidence=0.8, calibration=calibration, agreed=agreed
    )
    journal.append(decision, prompt="p")


def test_audits_of_earlier_starts_count(tmp_path: Path) -> None:
    journal, where = Journal(tmp_path / "journal.sqlite"), Calibrations(Kept(tmp_path))
    first = PromiseKeeper(BASE, NOW, calibrations=where, journal=journal)
    made = first.calibrate(LABELS, alpha=0.2, delta=0.05)
    for agreed in (None, *[False] * 5):
        write(journal, made.id, agreed, made.at + 1)
    for _ in range(40):
        write(journal, "another", False, made.at + 1)
    alone = PromiseKeeper(BASE, NOW, calibrations=where)
    alone.audited(Outcome(made.id, 0.8, False))
    assert alone.promise.standing == "holds"
    again = PromiseKeeper(BASE, NOW, calibrations=where, journal=journal)
    again.audited(Outcome(made.id, 0.8, False))
    assert again.promise.standing == "drifted"
    # An audit by a calibration that was replaced meanwhile says nothing of the new one.
    again.calibrate(LABELS, alpha=0.2, delta=0.05)
    for _ in range(40):
        again.audited(Outcome(made.id, 0.8, False))
    assert again.promise.standing == "holds"


def test_what_another_process_calibrated_or_found_holds_here(tmp_path: Path) -> None:
    one = PromiseKeeper(BASE, NOW, calibrations=Calibrations(Kept(tmp_path)))
    one.calibrate(LABELS, alpha=0.2, delta=0.05)
    other = PromiseKeeper(BASE, NOW, calibrations=Calibrations(Kept(tmp_path)))
    outcomes(one, [False] * 40)
    assert (one.promise.standing, other.promise.standing) == ("drifted", "holds")
    outcomes(other, [True])
    assert other.promise.standing == "drifted"


def test_prompts_that_became_others_are_told_as_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keeper = PromiseKeeper(BASE, NOW)
    keeper.calibrate(LABELS, alpha=0.2, delta=0.05)
    for i in range(300):
        # Neither answers without a token nor those that were doubted half-way are of the labels.
        keeper.drafted(replace(DRAFT, confidence=None))
        keeper.drafted(replace(DRAFT, confidence=0.1, doubted=True))
        keeper.drafted(replace(DRAFT, confidence=(i % 100) / 100))
    assert not keeper.promise.moved
    for _ in range(300):
        keeper.drafted(replace(DRAFT, confidence=0.55))
    assert keeper.promise.moved
    assert keeper.promise.standing == "holds"
    assert "others than those that were labelled" in keeper.promise.phrase()
    assert len([r for r in caplog.records if "distributed" in r.getMessage()]) == 1
    keeper.calibrate(LABELS, alpha=0.2, delta=0.05)
    assert not keeper.promise.moved


def test_replies_are_offered_only_where_confidence_chose(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    offered: list[KeptAnswer] = []
    confidence = Confidence(threshold=0.3, give_up_below=0.0)
    with HybridClient(
        fake_model(), journal=journal, audits=Audits(), confidence=confidence
    ) as client:
        auditor = client._trust._auditor
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
