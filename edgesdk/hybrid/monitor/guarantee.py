"""What is guaranteed of the device's answers, and the stored calibration that it comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from edgesdk.errors import RequestError
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.confidence.artifacts import ArtifactStore, value_from_json, value_to_json
from edgesdk.hybrid.confidence.confidence import UNTRAINED_MEASURE, Confidence
from edgesdk.hybrid.confidence.threshold import Calibration
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


class CalibrationStore:
    """Stores the calibrations of a profile, one for each model.

    A guarantee is about prompts like those that were labelled, so a bundle brings none.
    """

    def __init__(self, folder: str | Path) -> None:
        self._artifacts = ArtifactStore(folder)

    def load(self, now: CalibrationKey) -> CalibrationRecord | str | None:
        """Load the calibration for `now`; None where this model never had one.

        A text says why one is stale, as the end of a sentence.
        """
        try:
            record = self._read(now.bundle)
        except RequestError as error:
            return f"it cannot be read: {error}"
        if record is not None:
            changes = now.changes(record.key)
            return f"{' and '.join(changes)} changed since" if changes else record
        others = [other for other in self._others() if other.key.model == now.model]
        if not others:
            return None
        newest = max(others, key=lambda other: other.at)
        return f"{' and '.join(now.changes(newest.key))} changed since"

    def save(self, record: CalibrationRecord) -> Path:
        """Store a record in place of the model's earlier one, and return the file."""
        return self._artifacts.write(record.key.bundle, _NAME, value_to_json(record))

    def _others(self) -> Iterator[CalibrationRecord]:
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


GuaranteeStatus = Literal["none", "holds", "impossible", "stale", "drifted"]


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
