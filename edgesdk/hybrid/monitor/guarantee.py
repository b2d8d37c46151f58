"""The risk guarantee in force: a stored calibration makes it, audits watch it, drift ends it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from edgesdk.errors import RequestError
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.confidence.artifacts import ArtifactStore, value_from_json, value_to_json
from edgesdk.hybrid.confidence.confidence import UNTRAINED_MEASURE, Confidence
from edgesdk.hybrid.confidence.threshold import Calibration, Labels, calibrate_labels
from edgesdk.hybrid.monitor.drift import RiskMonitor, ShiftDetector
from edgesdk.hybrid.reply import LocalDraft
from edgesdk.hybrid.storage.journal import Journal
from edgesdk.model import Model

_NAME = "calibration"
_WORDS = {
    "bundle": "the model",
    "template": "the chat template",
    "clouds": "the cloud",
    "confidence": "the way confidences are computed or answers are given up",
}


@dataclass(frozen=True)
class CalibrationKey:
    """What a calibration was made for; a guarantee holds for nothing else.

    Attributes:
        model: name, which tells a model that was changed from another one.
        bundle: hash of the model.
        template: hash of its chat template; empty where it has none.
        clouds: names of the endpoints, in order.
        confidence: hash of all of `Confidence` but its threshold, and of the device's fingerprint.
    """

    model: str
    bundle: str
    template: str
    clouds: tuple[str, ...]
    confidence: str

    def changes(self, then: CalibrationKey) -> tuple[str, ...]:
        """List what differs from an earlier key, in words."""
        return tuple(
            words for name, words in _WORDS.items() if getattr(self, name) != getattr(then, name)
        )


def calibration_key(
    model: Model, clouds: Sequence[Cloud], confidence: Confidence, fingerprint: str = ""
) -> CalibrationKey:
    """Make the key for a client with these parts, and the `fingerprint` of its device (see
    `edgesdk.hybrid.local.LocalModel.fingerprint`)."""
    template = model.runtime.encoder.template
    settings = {name: value for name, value in asdict(confidence).items() if name != "threshold"}
    untrained = UNTRAINED_MEASURE if confidence.regression is None else ""
    ways = json.dumps(settings, sort_keys=True) + untrained + fingerprint
    return CalibrationKey(
        model=model.name,
        bundle=model.runtime.engine.kv_identity.model,
        template="" if template is None else template.sha256,
        clouds=tuple(cloud.name for cloud in clouds),
        confidence=hashlib.sha256(ways.encode()).hexdigest(),
    )


@dataclass(frozen=True)
class CalibrationRecord:
    """A calibration, with when and for what it was made.

    Attributes:
        id: by which audits refer to it.
        at: seconds since the epoch.
        calibration: the threshold and its guarantee.
        skipped: how many prompts had no answer that a threshold decides about.
        confidences: of the labels, in the order in which they were drawn; empty where they are
            not of all answers.
        drifted: it was made of audits, because they showed that an earlier guarantee does not hold.
    """

    id: str
    at: float
    key: CalibrationKey
    calibration: Calibration
    skipped: int = 0
    confidences: tuple[float, ...] = ()
    drifted: bool = False


@dataclass(frozen=True)
class StaleCalibration:
    """A calibration that cannot be used any more, and why, for the end of a sentence."""

    reason: str


class CalibrationStore:
    """Stores the calibrations of a profile, one for each model.

    A guarantee is about prompts like those that were labelled, so a bundle brings none.
    """

    def __init__(self, folder: str | Path) -> None:
        self._artifacts = ArtifactStore(folder)

    def load(self, now: CalibrationKey) -> CalibrationRecord | StaleCalibration | None:
        """Load the calibration for `now`; None where this model never had one."""
        try:
            record = self._read(now.bundle)
        except RequestError as error:
            return StaleCalibration(f"it cannot be read: {error}")
        if record is not None:
            changes = now.changes(record.key)
            return StaleCalibration(f"{' and '.join(changes)} changed since") if changes else record
        others = [other for other in self._others() if other.key.model == now.model]
        if not others:
            return None
        newest = max(others, key=lambda other: other.at)
        return StaleCalibration(f"{' and '.join(now.changes(newest.key))} changed since")

    def save(self, record: CalibrationRecord) -> Path:
        """Store a record in place of the model's earlier one, and return the file."""
        return self._artifacts.write(record.key.bundle, _NAME, value_to_json(record))

    def _others(self) -> Iterator[CalibrationRecord]:
        """Iterate the readable records of all models."""
        for path in self._artifacts.folder.glob(f"*/{_NAME}.json"):
            with suppress(RequestError):
                record = self._read(path.parent.name)
                if record is not None:
                    yield record

    def _read(self, bundle: str) -> CalibrationRecord | None:
        value = self._artifacts.read(bundle, _NAME)
        if value is None:
            return None
        record = value_from_json(CalibrationRecord, value)
        if record.key.bundle != bundle:
            raise RequestError("This calibration is of another model.")
        return record


_LOG = logging.getLogger("edgesdk.hybrid")

GuaranteeStatus = Literal["none", "holds", "impossible", "stale", "drifted"]

# No answer has this confidence, so none is kept.
_KEEPS_NOTHING = math.inf


@dataclass(frozen=True)
class AuditOutcome:
    """What an audit found: whether the cloud `agreed` with an answer.

    Attributes:
        calibration: id of the one by which the answer was kept; empty where there was none.
    """

    calibration: str
    confidence: float
    agreed: bool


@dataclass(frozen=True)
class RiskGuarantee:
    """What is guaranteed of the device's answers now.

    Attributes:
        status: "none": nobody calibrated, the app's own threshold holds, without a guarantee;
            "holds": the calibration's threshold holds; "impossible": the labels allow no guarantee;
            "stale": the calibration is of other circumstances; "drifted": audits showed that the
            guarantee was broken. In the last three nothing is kept, but where audits allow a
            stricter threshold.
        confidence: what decides.
        record: the calibration; None where there is none that can be used.
        reason: it is stale, in words.
        shifted: confidences are not distributed any more as those of the labels were, so the
            prompts may be others than were calibrated for. A warning only.
    """

    status: GuaranteeStatus
    confidence: Confidence
    record: CalibrationRecord | None = None
    reason: str = ""
    shifted: bool = False

    def phrase(self) -> str:
        """Say it to people."""
        if self.record is None:
            if self.status == "none":
                return "Nothing was calibrated, so nothing is guaranteed."
            return (
                f"There is a calibration, but {self.reason}. It promises nothing any more, and no"
                " answer of the device is kept as sure. Calibrate again."
            )
        text = self.record.calibration.phrase()
        if self.status == "drifted":
            text = f"Audits showed that more answers were wrong than had been promised. {text}"
        if self.record.calibration.threshold is None:
            text = f"{text} No answer of the device is kept as sure."
        if self.shifted:
            text = f"{text} The prompts seem to be others than those that were labelled."
        return text


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
        self._audited: list[AuditOutcome] = []
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

    def observe_audit(self, outcome: AuditOutcome) -> None:
        """Count the outcome of an audit."""
        with self._working:
            self._reload()
            record = self._guarantee.record
            if record is None or outcome.calibration != record.id:
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

    def _drifted(self, record: CalibrationRecord, audited: list[AuditOutcome]) -> None:
        """Guarantee what the newest audits allow.

        Audits only saw answers that were kept, so the new threshold is stricter. They are those
        since the change, so rather more of them are wrong than of other answers.
        """
        labels = Labels(
            tuple(outcome.confidence for outcome in audited),
            tuple(outcome.agreed for outcome in audited),
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

    def _adopt(self, loaded: CalibrationRecord | StaleCalibration) -> None:
        guarantee = self._guarantee_of(loaded)
        # Without a guarantee it does not matter whether the prompts change.
        watched = guarantee.record if guarantee.status == "holds" else None
        confidences = () if watched is None else watched.confidences
        with self._guard:
            self._guarantee, self._inputs = guarantee, ShiftDetector(confidences)
        if guarantee.status != "holds":
            _LOG.warning("%s", guarantee.phrase())

    def _guarantee_of(self, loaded: CalibrationRecord | StaleCalibration) -> RiskGuarantee:
        if isinstance(loaded, StaleCalibration):
            return RiskGuarantee("stale", self._at(_KEEPS_NOTHING), reason=loaded.reason)
        threshold = loaded.calibration.threshold
        status: GuaranteeStatus = "holds" if threshold is not None else "impossible"
        return RiskGuarantee(
            "drifted" if loaded.drifted else status,
            self._at(_KEEPS_NOTHING if threshold is None else threshold),
            loaded,
        )

    def _at(self, threshold: float) -> Confidence:
        return replace(self._base, threshold=threshold)

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

    def _recorded(self, record: CalibrationRecord) -> list[AuditOutcome]:
        """Read the audits of this calibration from before this start."""
        if self._journal is None:
            return []
        try:
            entries = list(self._journal.entries(since=record.at, route="audit"))
        except RequestError as error:
            _LOG.warning("earlier audits could not be read: %s", error)
            return []
        return [
            AuditOutcome(record.id, entry.decision.confidence, entry.decision.agreed)
            for entry in entries
            if entry.decision.calibration == record.id
            and entry.decision.agreed is not None
            and entry.decision.confidence is not None
        ]
