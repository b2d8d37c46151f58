"""Keeps the risk guarantee in force: calibrations make it, audits watch it, drift ends it."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace

from edgesdk.errors import InvalidOption, RequestError
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.spending import Budget
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.confidence.threshold import (
    Check,
    Labels,
    Progress,
    calibrate_labels,
    label_answers,
    labels_in_journal,
)
from edgesdk.hybrid.local import LocalModel
from edgesdk.hybrid.monitor.audits import AuditCandidate, Auditor, Audits
from edgesdk.hybrid.monitor.drift import RiskMonitor, ShiftDetector
from edgesdk.hybrid.monitor.guarantee import (
    CalibrationKey,
    CalibrationRecord,
    CalibrationStore,
    GuaranteeStatus,
    RiskGuarantee,
    calibration_key,
)
from edgesdk.hybrid.privacy.policy import Policy, UploadVerdict
from edgesdk.hybrid.remote import RemoteModel
from edgesdk.hybrid.reply import HybridReply, LocalDraft
from edgesdk.hybrid.request import Messages
from edgesdk.hybrid.storage.journal import DecisionRecord, Journal
from edgesdk.model import Model
from edgesdk.options import Options
from edgesdk.request import Request
from edgesdk.system.closing import Closeable
from edgesdk.text.prompts import Prompt

_LOG = logging.getLogger("edgesdk.hybrid")
# No answer has this confidence, so none is kept.
_KEEPS_NOTHING = math.inf


class GuaranteeMonitor:
    """Keeps the guarantee in force, and changes it. Several threads may use it.

    Args:
        base: the app's own setting, which holds where nothing was calibrated.
        now: what a calibration has to be made for.
        calibrations: None keeps one as long as this lives.
        journal: where audits are written down, to go on with those of earlier starts.
    """

    def __init__(
        self,
        base: Confidence,
        now: CalibrationKey,
        *,
        calibrations: CalibrationStore | None = None,
        journal: Journal | None = None,
    ) -> None:
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


def _is_outcome(audit: DecisionRecord, calibration: str) -> bool:
    """Whether an audit tells something of the answers that a calibration keeps."""
    judged = audit.agreed is not None and audit.confidence is not None
    return judged and audit.calibration == calibration


class Monitor(Closeable):
    """Keeps the threshold in force, and what is guaranteed of it. Several threads may use it.

    Args:
        device: makes the answers.
        base: the app's own setting, by which answers are made, whatever threshold then decides
            about them: a threshold must not change what it was chosen for.
        calibrations: those of the client's profile; None keeps one for as long as this lives.
        audits: the app's consent to audits; None for none.

    Raises:
        InvalidOption: there are to be audits, but no journal.
    """

    def __init__(
        self,
        model: Model,
        device: LocalModel,
        base: Confidence,
        clouds: Sequence[Cloud],
        policy: Policy,
        budget: Budget | None,
        journal: Journal | None,
        *,
        calibrations: CalibrationStore | None = None,
        audits: Audits | None = None,
    ) -> None:
        self._model = model
        self._device = device
        self._has_cloud = bool(clouds)
        self._base = base
        self._fingerprint = device.fingerprint(base)
        self._guarantee = GuaranteeMonitor(
            base,
            calibration_key(model, clouds, base, self._fingerprint),
            calibrations=calibrations,
            journal=journal,
        )
        self._auditor: Auditor | None = None
        if audits is not None:
            if journal is None:
                raise InvalidOption(
                    "Audits need a journal, because only many of them together tell something.",
                    hint="Give the client a Journal, or no audits.",
                )
            self._auditor = Auditor(
                audits,
                RemoteModel(clouds, policy, budget, "restart"),
                policy,
                journal,
                bundle=model.runtime.engine.kv_identity.model,
                on_outcome=self._guarantee.observe_audit,
            )

    @property
    def confidence(self) -> Confidence:
        """The confidence whose threshold decides now."""
        return self._guarantee.guarantee.confidence

    @property
    def guarantee(self) -> RiskGuarantee:
        """The risk guarantee in force."""
        return self._guarantee.guarantee

    def calibrate(
        self,
        labelled: Iterable[tuple[Prompt, Check]] | Journal,
        options: Options,
        *,
        alpha: float,
        delta: float,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> CalibrationRecord:
        """Find the loosest threshold with a risk guarantee, and use it from now on.

        With probability 1 - `delta`, at most the share `alpha` of the answers that the device keeps
        is wrong. In a profile the threshold also holds at the next starts. Where the labels allow
        no guarantee, nothing is kept any more; the result's `calibration` says so in its `phrase`,
        and how many more labels might do.

        The guarantee covers requests that may leave the device. Where the router or
        self-consistency make a difference, other requests are answered in another way, and nothing
        is guaranteed of them.

        Args:
            labelled: prompts, drawn as those to come will be, none of which trained the
                confidence, each with the expected answer (see
                `edgesdk.hybrid.confidence.threshold.same_answer`) or what tells whether an answer
                is right; or a journal with labels, with which nothing is run.
            options: with which answers are made later.
            progress: called after each prompt with how many are done, and how many there are or
                None.
            cancel: ends it when set, between two tokens.

        Raises:
            InvalidOption: alpha or delta is no probability.
            RequestError: it was cancelled, or a prompt is none. Nothing was changed.
            Exception: whatever a check raises. Nothing was changed.
        """
        if isinstance(labelled, Journal):
            bundle = self._model.runtime.engine.kv_identity.model
            labels = labels_in_journal(labelled.entries(), self._base, bundle=bundle)
        else:

            def drafting(messages: Messages) -> Generator[object, None, LocalDraft | None]:
                return self._device.draft_for_calibration(
                    messages, options, self._base, cloud_allowed=self._has_cloud
                )

            labels = label_answers(labelled, drafting, progress=progress, cancel=cancel)
        return self._guarantee.calibrate(labels, alpha=alpha, delta=delta)

    def observe_answer(
        self,
        request: Request,
        verdict: UploadVerdict,
        reply: HybridReply,
        *,
        chosen: bool,
    ) -> None:
        """Watch an answer that a user has got; returns at once.

        Args:
            chosen: whether the confidence chose it, rather than the app.
        """
        local = reply.local
        if local is None or not chosen:
            return
        # Requests that may not leave skip the router and self-consistency; the labels did not.
        may_leave = verdict.upload != "local_only"
        if not self._fingerprint or (not reply.rejected_by and may_leave) or not self._has_cloud:
            self._guarantee.observe_draft(local)
        if self._auditor is not None and reply.route == "local" and not reply.low_confidence:
            self._auditor.offer(
                AuditCandidate(request, verdict, local, self._guarantee.calibration)
            )

    def close(self) -> None:
        """End all audits."""
        if self._auditor is not None:
            self._auditor.close()
