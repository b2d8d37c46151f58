"""Measure how much is learned from how many answers, and in which families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.hybrid.estimates import Estimate, Families, within_families
from benchmarks.hybrid.policies import policies_for, right_of
from benchmarks.hybrid.replays import Data, calibration_error
from edgesdk.hybrid.confidence.linear_models import auroc

_FEWEST = 100


@dataclass(frozen=True)
class AfterAnswers:
    """What a policy knows that learned from so many answers.

    Attributes:
        within: AUROC within the families that were trained on, their mean,
        unknown: and within the others.
        error: expected calibration error.
    """

    answers: int
    within: Estimate
    unknown: Estimate
    error: Estimate


def learning_curve(data: Data, policy: str) -> list[AfterAnswers]:
    """From a hundred answers on, each time twice as many; families come round evenly."""
    sizes = [_FEWEST]
    while sizes[-1] * 2 < len(data.train):
        sizes.append(sizes[-1] * 2)
    return [_after(replace(data, train=data.train[:size]), policy) for size in (*sizes, None)]


def _after(data: Data, policy: str) -> AfterAnswers:
    score = policies_for(data.train)[policy](data.train)
    known, unknown = Families(data.test), Families(data.unknown)
    scores, right = score(data.test), right_of(data.test)
    others, right_others = score(data.unknown), right_of(data.unknown)
    return AfterAnswers(
        len(data.train),
        known.estimate(lambda groups: within_families(scores, right, groups)),
        unknown.estimate(lambda groups: within_families(others, right_others, groups)),
        known.estimate(lambda groups: calibration_error(scores, right, groups)),
    )


@dataclass(frozen=True)
class InFamily:
    """How well policies tell right from wrong in one family.

    Attributes:
        right: share of its test questions.
        aurocs: of each policy.
    """

    family: str
    questions: int
    right: float
    aurocs: tuple[float, ...]


def by_family(data: Data, policies: Sequence[str]) -> list[InFamily]:
    """Of the families that were trained on, where some answers are right and some are wrong."""
    right = right_of(data.test)
    scores = [policies_for(data.train)[name](data.train)(data.test) for name in policies]
    return [
        InFamily(
            family,
            len(places),
            float(right[places].mean()),
            tuple(auroc(each[places], right[places]) for each in scores),
        )
        for family, places in Families(data.test).places.items()
        if len(np.unique(right[places])) == 2
    ]
