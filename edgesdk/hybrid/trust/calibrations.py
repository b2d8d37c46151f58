"""Calibrations that outlive the process, and what they were made for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError

from edgesdk.errors import InvalidOption, RequestError
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.trust.confidence import Confidence
from edgesdk.hybrid.trust.kept import Kept, kept_for
from edgesdk.hybrid.trust.threshold import Calibration
from edgesdk.model import Model

_NAME = "calibration"
_APP = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_WORDS = {
    "bundle": "the model",
    "template": "the chat template",
    "clouds": "the cloud",
    "confidence": "the way confidences are computed or answers are given up",
}


@dataclass(frozen=True)
class Circumstances:
    """What a promise depends on, beside the prompts that the app has.

    Attributes:
        model: name, which tells a model that was changed from another one.
        bundle: hash of the model.
        template: hash of its chat template; empty where it has none.
        clouds: names of the endpoints, in order.
        confidence: hash of all of `Confidence` but its threshold, and of the device's habits.
    """

    model: str
    bundle: str
    template: str
    clouds: tuple[str, ...]
    confidence: str

    def changes(self, then: Circumstances) -> tuple[str, ...]:
        """What is not as it was then, in words."""
        return tuple(
            words for name, words in _WORDS.items() if getattr(self, name) != getattr(then, name)
        )


def circumstances_of(
    model: Model, clouds: Sequence[Cloud], confidence: Confidence, habits: str = ""
) -> Circumstances:
    """Those of a client with these parts.

    Args:
        habits: what else decides how answers are made; see `edgesdk.hybrid.device.Device.habits`.
    """
    template = model.runtime.encoder.template
    settings = {name: value for name, value in asdict(confidence).items() if name != "threshold"}
    ways = json.dumps(settings, sort_keys=True) + habits
    return Circumstances(
        model=model.name,
        bundle=model.runtime.engine.origin.model,
        template="" if template is None else template.sha256,
        clouds=tuple(cloud.name for cloud in clouds),
        confidence=hashlib.sha256(ways.encode()).hexdigest(),
    )


@dataclass(frozen=True)
class Calibrated:
    """A calibration, when and for what it was made.

    Attributes:
        id: by which audits refer to it.
        at: seconds since the epoch.
        calibration: the threshold and its promise.
        passed_over: how many prompts had no answer that a threshold decides about.
        confidences: of the labels, in the order in which they were drawn; empty where they are
            not of all answers.
        drifted: it was made of audits, because they showed that an earlier promise does not hold.
    """

    id: str
    at: float
    circumstances: Circumstances
    calibration: Calibration
    passed_over: int = 0
    confidences: tuple[float, ...] = ()
    drifted: bool = False


@dataclass(frozen=True)
class Stale:
    """There is a calibration, but not one that can be used.

    Attributes:
        why: in words, for the end of a sentence.
    """

    why: str


_STORED = TypeAdapter(Calibrated)


class Calibrations:
    """Where an app's calibrations are kept, one for each model.

    They are the app's own, because a promise is about prompts like those that were labelled, and
    those of another app are others.

    Args:
        kept: the folder.
        name: of the values in it.
    """

    def __init__(self, kept: Kept, name: str = _NAME) -> None:
        self._kept = kept
        self._name = name

    def load(self, now: Circumstances) -> Calibrated | Stale | None:
        """The calibration for `now`; None where this model never had one."""
        try:
            found = self._read(now.bundle)
        except RequestError as error:
            return Stale(f"it cannot be read: {error}")
        if found is not None:
            changes = now.changes(found.circumstances)
            return Stale(f"{' and '.join(changes)} changed since") if changes else found
        others = [other for other in self._others() if other.circumstances.model == now.model]
        if not others:
            return None
        newest = max(others, key=lambda other: other.at)
        return Stale(f"{' and '.join(now.changes(newest.circumstances))} changed since")

    def save(self, calibrated: Calibrated) -> Path:
        """Keep it, in place of the one that there was for the same model; the file.

        Raises:
            RequestError: it cannot be written.
        """
        value: JsonValue = _STORED.dump_python(calibrated, mode="json")
        return self._kept.write(calibrated.circumstances.bundle, self._name, value)

    def _others(self) -> Iterator[Calibrated]:
        """Those of all models that can be read."""
        for path in self._kept.folder.glob(f"*/{self._name}.json"):
            with suppress(RequestError):
                found = self._read(path.parent.name)
                if found is not None:
                    yield found

    def _read(self, bundle: str) -> Calibrated | None:
        value = self._kept.read(bundle, self._name)
        if value is None:
            return None
        try:
            found = _STORED.validate_python(value)
        except ValidationError as error:
            raise RequestError(
                f"This is no stored calibration: {error.errors()[0]['msg']}."
            ) from None
        if found.circumstances.bundle != bundle:
            raise RequestError("This calibration is of another model.")
        return found


def calibrations_in(where: str | Path) -> Calibrations:
    """Those of the app of that name in the device's own folder, or those in a folder of the app.

    Raises:
        InvalidOption: the name is none.
    """
    if isinstance(where, Path):
        return Calibrations(Kept(where))
    if not _APP.fullmatch(where):
        raise InvalidOption(
            f"{where!r} cannot be the name of an app.",
            hint="Use up to 64 of a-z, 0-9, dot, dash and underscore, a letter or digit first.",
        )
    return Calibrations(kept_for(None), f"{_NAME}-{where}")
