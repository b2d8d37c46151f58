"""Replay the policies on stored outcomes, and say what each is worth.

Policies learn from the training split alone; all figures are of the test split. Families that the
model always or never gets right are left out: there is nothing to tell apart.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from benchmarks.hybrid.estimates import Estimate, Families, Places, share, within_families
from benchmarks.hybrid.outcomes import Outcome
from benchmarks.hybrid.policies import PROBABILITIES, policies_for, right_of
from benchmarks.hybrid.routing_curves import RoutingCurve, oracle_curve, routing_curve
from edgesdk.errors import InvalidOption
from edgesdk.hybrid.confidence.linear_models import Flags as Labels
from edgesdk.hybrid.confidence.linear_models import Numbers, auroc, checked_lengths
from edgesdk.hybrid.confidence.threshold import calibrate

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

BASELINE = "mean log-probability"
_MIDDLE = (0.1, 0.9)
_GAP_PART = 0.8
_RECALIBRATIONS = 200
_LABELS = 100


@dataclass(frozen=True)
class Data:
    """A local model's outcomes in the families where it is neither always right nor always wrong.

    Attributes:
        train, calibration, test: of the families that are trained on.
        unknown: of those that are not.
    """

    train: list[Outcome]
    calibration: list[Outcome]
    test: list[Outcome]
    unknown: list[Outcome]


def select(outcomes: Sequence[Outcome], held_out: frozenset[str]) -> Data:
    """Sort outcomes by what they are for."""
    families: dict[str, list[bool]] = defaultdict(list)
    for outcome in outcomes:
        families[outcome.family].append(outcome.right)
    low, high = _MIDDLE
    chosen = {name for name, right in families.items() if low <= np.mean(right) <= high}
    mine = [outcome for outcome in outcomes if outcome.family in chosen]
    known = [outcome for outcome in mine if outcome.family not in held_out]
    return Data(
        [outcome for outcome in known if outcome.split == "train"],
        [outcome for outcome in known if outcome.split == "calibration"],
        [outcome for outcome in known if outcome.split == "test"],
        [outcome for outcome in mine if outcome.family in held_out],
    )


@dataclass(frozen=True)
class Trust:
    """How well a policy's confidence tells right answers from wrong ones.

    Attributes:
        within: AUROC within the families that were trained on, their mean.
        gain: of `within`, over the mean log-probability.
        unknown: AUROC within the families that were not.
        pooled: AUROC over all trained families at once, which tells easy families from hard ones.
        error: expected calibration error; None where the confidence is no probability.
        floor: the error of a confidence that is right about itself, on as many answers.
    """

    within: Estimate
    gain: Estimate
    unknown: Estimate
    pooled: float
    error: Estimate | None
    floor: float | None


def trust(data: Data) -> dict[str, Trust]:
    """Each policy's."""
    test, unknown = Families(data.test), Families(data.unknown)
    right, right_unknown = right_of(data.test), right_of(data.unknown)
    scores = {name: fit(data.train) for name, fit in policies_for(data.train).items()}
    baseline = scores[BASELINE](data.test)
    found = {}
    for name, score in scores.items():
        known, new = score(data.test), score(data.unknown)
        error = floor = None
        if name in PROBABILITIES:
            error = test.estimate(lambda groups, s=known: calibration_error(s, right, groups))
            floor = _floor(known)
        found[name] = Trust(
            test.estimate(lambda groups, s=known: within_families(s, right, groups)),
            test.estimate(
                lambda groups, s=known: (
                    within_families(s, right, groups) - within_families(baseline, right, groups)
                )
            ),
            unknown.estimate(lambda groups, s=new: within_families(s, right_unknown, groups)),
            auroc(known, right),
            error,
            floor,
        )
    return found


@dataclass(frozen=True)
class Routing:
    """What a policy's confidence is worth beside a cloud.

    Attributes:
        apgr: mean of the gap recovered, over the oracle's.
        calls: share of calls at 80% of the gap.
        curve: for a plot.
    """

    apgr: Estimate
    calls: Estimate
    curve: RoutingCurve


def routing(data: Data, cloud: Flags) -> tuple[dict[str, Routing], RoutingCurve]:
    """Each policy's, and the oracle's curve; `cloud`, bool [test], is where the cloud is right."""
    families, right = Families(data.test), right_of(data.test)
    found = {}
    for name, fit in policies_for(data.train).items():
        score = fit(data.train)(data.test)

        def curve(groups: list[Places], score: Floats = score) -> RoutingCurve:
            places = np.concatenate(groups)
            return routing_curve(score[places], right[places], cloud[places])

        def normalised(groups: list[Places], curve=curve) -> float:  # type: ignore[no-untyped-def]
            places = np.concatenate(groups)
            return curve(groups).apgr() / oracle_curve(right[places], cloud[places]).apgr()

        found[name] = Routing(
            families.estimate(normalised),
            families.estimate(lambda groups, curve=curve: curve(groups).calls_for(_GAP_PART)),
            curve(list(families.places.values())),
        )
    return found, oracle_curve(right, cloud)


def faulty_cloud(outcomes: Sequence[Outcome], error_rate: float) -> Flags:
    """A cloud that knows the truth but errs this often, on the same questions each time."""
    draws = np.array([zlib.crc32(f"cloud {one.key}".encode()) / 2**32 for one in outcomes])
    return draws >= error_rate


def answered_by(data: Data, stronger: Iterable[Outcome]) -> tuple[Data, Flags]:
    """The test questions that another model was asked too, and where it was right."""
    right = {(one.family, one.question): one.right for one in stronger}
    asked = [one for one in data.test if (one.family, one.question) in right]
    flags = np.array([right[one.family, one.question] for one in asked], bool)
    return replace(data, test=asked), flags


@dataclass(frozen=True)
class Promises:
    """Recalibrations with few labels each.

    Attributes:
        recalibrations: how many there were,
        promised: how many of them found a threshold,
        violated: share of all, in which more of the kept answers are wrong than was promised.
        kept: share of the answers that is kept where there is a threshold, the median.
    """

    recalibrations: int
    promised: int
    violated: Estimate
    kept: float


def promises(data: Data, policy: str, *, alpha: float, delta: float) -> Promises:
    """Draw labels again and again from all outcomes that nothing was trained on; what a threshold
    then keeps of all of them is the truth that the promise is held against."""
    pool = [*data.calibration, *data.test]
    scores, right = policies_for(data.train)[policy](data.train)(pool), right_of(pool)
    rng = np.random.default_rng(0)
    kept_shares = []
    violated = 0
    for _ in range(_RECALIBRATIONS):
        drawn = rng.integers(0, len(pool), _LABELS)
        found = calibrate(scores[drawn].tolist(), right[drawn].tolist(), alpha=alpha, delta=delta)
        if found.threshold is not None:
            kept = scores >= found.threshold
            violated += bool((~right[kept]).mean() > alpha)
            kept_shares.append(float(kept.mean()))
    middle = float(np.median(kept_shares)) if kept_shares else 0.0
    return Promises(_RECALIBRATIONS, len(kept_shares), share(violated, _RECALIBRATIONS), middle)


def expected_calibration_error(confidences: Numbers, right: Labels, *, bins: int = 10) -> float:
    """Compute how far confidence and share of right answers lie apart, on average.

    With bins of equal width (Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599). It is never 0
    on few answers, not even for a perfect confidence: each bin's share is a draw.

    Args:
        confidences: probabilities, 0 to 1.

    Raises:
        InvalidOption: the lengths differ, there is none, or one is no probability.
    """
    scores, flags = checked_lengths(confidences, right)
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        raise InvalidOption("There must be confidences, each between 0 and 1.")
    places = np.minimum((scores * bins).astype(int), bins - 1)
    # Of a bin: the sum of (confidence - right); its size cancels out with its share of all.
    gaps = np.bincount(places, weights=scores - flags, minlength=bins)
    return float(np.abs(gaps).sum() / len(scores))


def calibration_error(scores: Floats, right: Flags, groups: list[Places]) -> float:
    """The expected calibration error of the outcomes of some families."""
    places = np.concatenate(groups)
    return expected_calibration_error(scores[places], right[places])


def _floor(scores: Floats) -> float:
    """The error if each answer were right with just the chance that the confidence says."""
    rng = np.random.default_rng(0)
    return float(
        np.mean(
            [
                expected_calibration_error(scores, rng.random(len(scores)) < scores)
                for _ in range(200)
            ]
        )
    )
