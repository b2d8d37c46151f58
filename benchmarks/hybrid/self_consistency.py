"""Measure what further answers are worth: how often the answer that most agree on is right, and how
well the agreement predicts that.

The confidence is trained on the training split, the weight of agreement on the calibration split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from benchmarks.hybrid.estimates import Estimate, Families, Places, within_families
from benchmarks.hybrid.outcomes import Outcome, Try
from benchmarks.hybrid.policies import asked
from benchmarks.hybrid.replays import Data, calibration_error
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.confidence.linear_models import train_regression
from edgesdk.hybrid.confidence.training import ConfidenceProfile, LabelledDraft, fit_profile
from edgesdk.hybrid.self_consistency import answer_similarity, consensus_of

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class EffortWorth:
    """Of so many further answers to each prompt.

    Attributes:
        right: share of the test questions that are right in the end,
        more: than the first answers are.
        within: AUROC of the confidence in what is answered, within families.
        error: expected calibration error.
    """

    tries: int
    right: Estimate
    more: Estimate
    within: Estimate
    error: Estimate


def efforts(data: Data) -> list[EffortWorth]:
    """From no further answers to as many as every outcome has; nothing where there are none."""
    outcomes = [*data.train, *data.calibration, *data.test]
    most = min((len(outcome.tries) for outcome in outcomes), default=0)
    if not most:
        return []
    learned = fit_profile([LabelledDraft(asked(one), one.signals, one.right) for one in data.train])
    families = Families(data.test)
    first = np.array([outcome.right for outcome in data.test], bool)
    found = []
    for tries in range(most + 1):
        scores, right = _answered(data, learned, tries)

        def of(values: Floats | Flags, groups: list[Places]) -> float:
            return float(values[np.concatenate(groups)].mean())

        found.append(
            EffortWorth(
                tries,
                families.estimate(lambda groups, r=right: of(r, groups)),
                families.estimate(lambda groups, r=right: of(r, groups) - of(first, groups)),
                families.estimate(lambda groups, s=scores, r=right: within_families(s, r, groups)),
                families.estimate(
                    lambda groups, s=scores, r=right: calibration_error(s, r, groups)
                ),
            )
        )
    return found


def _answered(data: Data, learned: ConfidenceProfile, tries: int) -> tuple[Floats, Flags]:
    """Confidences [test] and whether what is answered is right [test]."""
    plain = learned.confidence()
    if not tries:
        rows = _settled(data.test, learned, plain, tries)
        return np.array([row[0] for row in rows]), np.array([row[2] for row in rows], bool)
    known = _settled(data.calibration, learned, plain, tries)
    right = np.array([row[2] for row in known], bool)
    fusion = train_regression(("confidence", "agreement"), _agreements(known), right)
    rows = _settled(data.test, learned, plain, tries)
    scores = fusion.probability(_agreements(rows))
    return scores, np.array([row[2] for row in rows], bool)


def _agreements(rows: list[tuple[float, float, bool]]) -> Floats:
    """The confidence's logit, and the agreement, of each row [rows, 2]."""
    sure = np.clip([row[0] for row in rows], 1e-6, 1 - 1e-6)
    return np.column_stack([np.log(sure / (1 - sure)), [row[1] for row in rows]])


def _settled(
    outcomes: Sequence[Outcome], learned: ConfidenceProfile, confidence: Confidence, tries: int
) -> list[tuple[float, float, bool]]:
    """Of each prompt the answer of the most agreement: its own confidence, how far the others agree
    (0 to 1), and whether it is right."""
    found = []
    for outcome in outcomes:
        odds = learned.classifier.log_odds(asked(outcome))
        answers: list[Outcome | Try] = [outcome, *outcome.tries[:tries]]
        sureness = [confidence.of(replace(one.signals, prompt_log_odds=odds)) for one in answers]
        choice = consensus_of([one.answer for one in answers], sureness, answer_similarity)
        agreement = choice.agreement / tries if tries else 1.0
        found.append((sureness[choice.at], agreement, answers[choice.at].right))
    return found
