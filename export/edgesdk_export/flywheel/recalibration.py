"""Train and calibrate the confidence of a model anew, because its answers are others now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgesdk.errors import RequestError
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.confidence.threshold import Check
from edgesdk.hybrid.confidence.training import train_profile
from edgesdk.model import Model
from edgesdk.text.prompts import Prompt
from edgesdk_export.distill.verifiers import Verifier
from edgesdk_export.flywheel.answers import RIGHT
from edgesdk_export.flywheel.examples import Example
from edgesdk_export.flywheel.recipe import DecidingRecipe


@dataclass(frozen=True)
class Recalibration:
    """What a model's confidence came to.

    Attributes:
        untrained: why no confidence was trained; empty where one was.
        threshold: the lowest confidence that is kept; None where nothing is.
        labels, kept, wrong: how many answers chose it, of which it keeps so many, of which so many
            are wrong.
        words: the guarantee, as a sentence.
    """

    untrained: str
    threshold: float | None
    labels: int
    kept: int
    wrong: int
    words: str


def recalibrate(
    model: Model,
    clouds: Sequence[Cloud],
    training: Sequence[Example],
    calibration: Sequence[Example],
    recipe: DecidingRecipe,
    verifier: Verifier,
    profile: Path,
) -> Recalibration:
    """Train a confidence on some prompts, choose its threshold on others, and store both.

    Where the answers are too few, or all alike, the confidence stays untrained; a threshold is
    chosen all the same.

    Args:
        clouds: that the app's client asks; the calibration holds for a client of these.
        training, calibration: prompts that the model was not trained on, each with its answer.
        profile: a folder; see `edgesdk.hybrid.client.HybridClient`.
    """
    untrained = ""
    try:
        train_profile(
            model,
            _checked(training, verifier),
            profile=profile,
            max_tokens=recipe.max_tokens,
            temperature=0.0,
        )
    except RequestError as error:
        untrained = str(error)
    with HybridClient(model, cloud=clouds, profile=profile) as client:
        record = client.calibrate(
            _checked(calibration, verifier),
            alpha=recipe.alpha,
            delta=recipe.delta,
            max_tokens=recipe.max_tokens,
            temperature=0.0,
        )
    found = record.calibration
    return Recalibration(
        untrained, found.threshold, found.labels, found.kept, found.wrong, found.phrase()
    )


def _checked(examples: Sequence[Example], verifier: Verifier) -> list[tuple[Prompt, Check]]:
    return [
        ([dict(message) for message in example.messages], _check(example, verifier))
        for example in examples
    ]


def _check(example: Example, verifier: Verifier) -> Check:
    sample = {"messages": list(example.messages), "answer": example.answer}
    return lambda text: verifier(sample, text) >= RIGHT
