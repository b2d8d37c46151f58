"""Keeps the risk guarantee in force: calibrations make it, audits watch it, drift ends it.

Two detectors tell whether what the labels showed is still so: one on audits, which tells whether
the guarantee still holds, and one on confidences alone, which needs no labels and can only tell
that the prompts are others.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgesdk.errors import InvalidOption, RequestError
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.confidence.threshold import Labels, calibrate_labels
from edgesdk.hybrid.monitor.audits import AuditCandidate, Auditor
from edgesdk.hybrid.monitor.guarantee import (
    CalibrationKey,
    CalibrationRecord,
    CalibrationStore,
    GuaranteeStatus,
    RiskGuarantee,
)
from edgesdk.hybrid.privacy.policy import UploadVerdict
from edgesdk.hybrid.reply import HybridReply, LocalDraft
from edgesdk.hybrid.storage.journal import DecisionRecord, Journal
from edgesdk.request import Request
from edgesdk.system.closing import Closeable

_LOG = logging.getLogger("edgesdk.hybrid")
# No answer has this confidence, so none is kept.
_KEEPS_NOTHING = math.inf


class Monitor(Closeable):
    """Keeps the guarantee in force, and changes it. Several threads may use it.

    Args:
        base: the app's own setting, which holds where nothing was calibrated.
        now: what a calibration has to be made for.
        calibrations: None keeps one as long as this lives.
        journal: where audits are written down, to go on with those of earlier starts.
        routed: whether requests that may leave are answered in another way than others, by the
            router or self-consistency.

    Attributes:
        auditor: compares kept answers with the cloud's; None for nobody.
    """

    def __init__(
        self,
        base: Confidence,
        now: CalibrationKey,
        *,
        calibrations: CalibrationStore | None = None,
        journal: Journal | None = None,
        routed: bool = False,
    ) -> None:
        self.auditor: Auditor | None = None
        self._routed = routed
        self._base = base
        self._now = now
        self._calibrations = calibrations
        self._journal = journal
        # One for what answers wait for, one for what may read and write files.
        self._guard, self._working = threading.Lock(), threading.Lock()
        self._guarantee = RiskGuarantee("none", base)
        self._inputs = ShiftDetector(())
        self._risk: RiskMonitor | None = None
        self._risk_of = ""
        self._audited: list[DecisionRecord] = []
        stored = None if calibrations is None else calibrations.load(now)
        if stored is not None:
            self._adopt(stored)

    @property
    def confidence(self) -> Confidence:
        """The confidence whose threshold decides now."""
        return self._guarantee.confidence

    @property
    def guarantee(self) -> RiskGuarantee:
        """The guarantee in force."""
        return self._guarantee

    @property
    def calibration(self) -> str:
        """The id of the calibration in force; empty where there is none."""
        record = self._guarantee.record
        return "" if record is None else record.id

    def calibrate(self, labels: Labels, *, alpha: float, delta: float) -> CalibrationRecord:
        """Calibrate the threshold with labels, for now and for later starts.

        Where they allow no guarantee nothing is kept from now on, as nothing else would be safe.
        """
        record = CalibrationRecord(
            id=uuid.uuid4().hex,
            at=time.time(),
            key=self._now,
            calibration=calibrate_labels(labels, alpha=alpha, delta=delta),
            skipped=labels.skipped,
            confidences=labels.confidences,
        )
        with self._working:
            self._adopt(record)
            self._save(record)
        return record

    def observe_draft(self, draft: LocalDraft) -> None:
        """Watch the confidence of a draft for a user's prompt."""
        if draft.confidence is None or not draft.decidable:
            return
        with self._guard:
            if self._inputs.update(draft.confidence):
                self._guarantee = replace(self._guarantee, shifted=True)
                _LOG.warning(
                    "Confidences are not distributed any more as those of the labels were: the"
                    " prompts may be others than were calibrated for. Label some, and calibrate."
                )

    def observe_audit(self, outcome: DecisionRecord) -> None:
        """Count the outcome of an audit, if it had one."""
        with self._working:
            self._reload()
            record = self._guarantee.record
            if record is None or not _is_outcome(outcome, record.id):
                return
            risk, new = self._risk, [outcome]
            if risk is None or self._risk_of != record.id:
                risk = RiskMonitor(record.calibration.alpha, record.calibration.delta)
                self._risk, self._risk_of, self._audited = risk, record.id, []
                new = [*self._recorded(record), outcome]
            for one in new:
                self._audited.append(one)
                risk.update(not one.agreed)
            if risk.drifted:
                self._drifted(record, self._audited[risk.since :])

    def _drifted(self, record: CalibrationRecord, audited: list[DecisionRecord]) -> None:
        """Guarantee what the newest audits allow.

        Audits only saw answers that were kept, so the new threshold is stricter. They are those
        since the change, so rather more of them are wrong than of other answers.
        """
        labels = Labels(
            tuple(outcome.confidence or 0.0 for outcome in audited),
            tuple(bool(outcome.agreed) for outcome in audited),
        )
        old = record.calibration
        stricter = replace(
            record,
            id=uuid.uuid4().hex,
            at=time.time(),
            calibration=calibrate_labels(labels, alpha=old.alpha, delta=old.delta),
            skipped=0,
            confidences=(),
            drifted=True,
        )
        self._adopt(stricter)
        self._save(stricter)

    def _adopt(self, loaded: CalibrationRecord | str) -> None:
        guarantee = self._guarantee_of(loaded)
        # Without a guarantee it does not matter whether the prompts change.
        watched = guarantee.record if guarantee.status == "holds" else None
        confidences = () if watched is None else watched.confidences
        with self._guard:
            self._guarantee, self._inputs = guarantee, ShiftDetector(confidences)
        if guarantee.status != "holds":
            _LOG.warning("%s", guarantee.phrase())

    def _guarantee_of(self, loaded: CalibrationRecord | str) -> RiskGuarantee:
        if isinstance(loaded, str):
            nothing = replace(self._base, threshold=_KEEPS_NOTHING)
            return RiskGuarantee("stale", nothing, reason=loaded)
        threshold = loaded.calibration.threshold
        status: GuaranteeStatus = "holds" if threshold is not None else "impossible"
        lowest = _KEEPS_NOTHING if threshold is None else threshold
        confidence = replace(self._base, threshold=lowest)
        return RiskGuarantee("drifted" if loaded.drifted else status, confidence, loaded)

    def _save(self, record: CalibrationRecord) -> None:
        if self._calibrations is None:
            return
        try:
            self._calibrations.save(record)
        except RequestError as error:
            _LOG.warning("a calibration holds until the end of this program only: %s", error)

    def _reload(self) -> None:
        """Adopt what another process calibrated, or found of drift."""
        if self._calibrations is None:
            return
        stored = self._calibrations.load(self._now)
        current = self._guarantee.record
        if isinstance(stored, CalibrationRecord) and (current is None or stored.at > current.at):
            self._adopt(stored)

    def _recorded(self, record: CalibrationRecord) -> list[DecisionRecord]:
        """Read the audits of this calibration from before this start."""
        if self._journal is None:
            return []
        try:
            entries = list(self._journal.entries(since=record.at, route="audit"))
        except RequestError as error:
            _LOG.warning("earlier audits could not be read: %s", error)
            return []
        return [entry.decision for entry in entries if _is_outcome(entry.decision, record.id)]

    def observe_answer(
        self, request: Request, verdict: UploadVerdict, reply: HybridReply, *, chosen: bool
    ) -> None:
        """Watch an answer that a user has got; returns at once.

        Args:
            chosen: whether the confidence chose it, rather than the app.
        """
        local = reply.local
        if local is None or not chosen:
            return
        # Requests that may not leave skip the router and self-consistency; the labels did not.
        if not self._routed or (not reply.rejected_by and verdict.upload != "local_only"):
            self.observe_draft(local)
        if self.auditor is not None and reply.route == "local" and not reply.low_confidence:
            self.auditor.offer(AuditCandidate(request, verdict, local, self.calibration))

    def close(self) -> None:
        """End all audits."""
        if self.auditor is not None:
            self.auditor.close()


def _is_outcome(audit: DecisionRecord, calibration: str) -> bool:
    """Whether an audit tells something of the answers that a calibration keeps."""
    judged = audit.agreed is not None and audit.confidence is not None
    return judged and audit.calibration == calibration


# Bets on how much more than alpha are wrong, as shares of the way from alpha to all.
_BETS = np.array([0.1, 0.2, 0.35, 0.5, 0.75])
# A change is looked for at every so many audits; at each one it would take longer to be believed.
_STRIDE = 5

_WINDOW = 100
_LEVEL = 0.01
# More labels hardly see more, and the exact test takes their number times the window's steps.
_MAX_REFERENCE = 500


class RiskMonitor:
    """Tests, audit by audit, whether more than `alpha` of the kept answers are wrong.

    A test by betting (Waudby-Smith and Ramdas 2024, arXiv:2010.09686; for a deployed model's risk
    Podkopaev and Ramdas 2022, arXiv:2110.06177). A stake of 1 is put, in shares of
    1 / (k (k + 1)), on "from the k-th place on more than alpha are wrong", each share spread over
    several rates, and each grows by the likelihood ratio of what is seen. While at most alpha are
    wrong the capital is a nonnegative supermartingale, so by Ville's inequality it ever reaches
    1 / delta with probability at most delta, however long one looks. Starting at each place keeps
    a long good time from hiding the bad one after it, as the Shiryaev-Roberts procedure does (Shin,
    Ramdas, Rinaldo 2024, "E-detectors", arXiv:2203.03532). Not for several threads.

    Raises:
        InvalidOption: alpha or delta is no probability.
    """

    def __init__(self, alpha: float, delta: float) -> None:
        if not (0 < alpha < 1 and 0 < delta < 1):
            raise InvalidOption("alpha and delta must lie between 0 and 1.")
        rates = alpha + (1 - alpha) * _BETS
        self._gains = np.log(rates / alpha)
        self._losses = np.log((1 - rates) / (1 - alpha))
        self._delta = delta
        self._stakes = np.zeros(len(_BETS))
        self._reserve = 1.0
        self._sums = np.zeros(len(_BETS))
        self._lowest = np.zeros(len(_BETS))
        self._starts = np.zeros(len(_BETS), np.int64)
        self.count = 0
        self.drifted = False

    @property
    def e_value(self) -> float:
        """The evidence against the guarantee: what a stake of 1 has become."""
        return self._reserve + float(self._stakes.sum())

    @property
    def since(self) -> int:
        """The audit, counted from 0, from which on the evidence is strongest."""
        return int(self._starts[np.argmax(self._sums - self._lowest)])

    def update(self, wrong: bool) -> None:
        """One more audit. Afterwards `drifted` is whether the e-value ever reached 1 / delta."""
        if self.count % _STRIDE == 0:
            place = self.count // _STRIDE + 1
            stake = 1 / (place * (place + 1))
            self._reserve -= stake
            self._stakes += stake / len(_BETS)
        better = self._sums <= self._lowest
        self._lowest[better] = self._sums[better]
        self._starts[better] = self.count
        step = self._gains if wrong else self._losses
        self._sums = self._sums + step
        self._stakes = self._stakes * np.exp(step)
        self.count += 1
        self.drifted = self.drifted or self.e_value >= 1 / self._delta


class ShiftDetector:
    """Tests whether confidences are still distributed as those of the labels were.

    Each `window` of them is compared with the labels' by the two-sample Kolmogorov-Smirnov test,
    the k-th at the level 0.01 / (k (k + 1)): all together a false alarm of one watch has at most
    probability 0.01. Not for several threads.

    Args:
        reference: the labels' confidences, in the order in which they were drawn.
    """

    def __init__(self, reference: Sequence[float], *, window: int = _WINDOW) -> None:
        self._reference = np.asarray(reference[:_MAX_REFERENCE], np.float64)
        self._window = window
        self._recent: list[float] = []
        self._tests = 0
        self.shifted = False

    def update(self, confidence: float) -> bool:
        """One more; whether it is the one that shows that they moved, which happens once."""
        if self.shifted or not len(self._reference):
            return False
        self._recent.append(confidence)
        if len(self._recent) < self._window:
            return False
        self._tests += 1
        level = _LEVEL / (self._tests * (self._tests + 1))
        self.shifted = ks_p_value(self._reference, np.array(self._recent)) <= level
        self._recent.clear()
        return self.shifted


def ks_p_value(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Compute the exact p-value of the two-sided Kolmogorov-Smirnov test of two samples.

    Under the null hypothesis the order of the pooled samples is a random walk from (0, 0) to
    (n, m), and the p-value is the chance that it strays as far from the diagonal as the samples do
    (Hodges 1958, "The significance probability of the Smirnov two-sample test"). Ties make it
    conservative.
    """
    n, m = len(one), len(other)
    pooled = np.unique(np.concatenate([one, other]))
    first = np.searchsorted(np.sort(one), pooled, side="right")
    second = np.searchsorted(np.sort(other), pooled, side="right")
    # In whole numbers, n m times the distance, so that equal distances are equal.
    distance = int(np.abs(first * m - second * n).max())
    # chance[i]: of being at (i, step - i) without having strayed.
    chance = np.zeros(n + 1)
    chance[0] = 1.0
    strayed = 0.0 if distance else 1.0
    i = np.arange(n + 1)
    for step in range(n + m):
        j = step - i
        left = n + m - step
        right = chance * np.clip(n - i, 0, None) / left
        chance = chance * np.clip(m - j, 0, None) / left
        chance[1:] += right[:-1]
        outside = np.abs(i * m - (step + 1 - i) * n) >= distance
        strayed += math.fsum(chance[outside])
        chance[outside] = 0.0
    return min(1.0, strayed)
