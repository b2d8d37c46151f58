"""Measure what aborting an answer early is worth: how well its first tokens predict whether it will
be right, how much decoding is saved, and how many right answers are lost.

The predictors are trained on the training split. Only answers that still go on at that point count.
Most answers here are short, so the benchmark aborts earlier than a client does by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from benchmarks.hybrid.estimates import Estimate, Families, Places, within_families
from benchmarks.hybrid.outcomes import Outcome
from benchmarks.hybrid.policies import asked, right_of
from benchmarks.hybrid.replays import Data
from edgesdk.hybrid.confidence.confidence import Confidence, Signals, signals_of
from edgesdk.hybrid.confidence.training import ConfidenceProfile, LabelledDraft, fit_profile
from edgesdk.hybrid.local import CHECK_EVERY

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GivenUp:
    """One way to judge answers that go on.

    Attributes:
        answers: of the test split that were judged half-way.
        within: AUROC of the first judgement, within families.
        wrong, right: shares of the wrong and of the right answers that are given up,
        kept: and of those that would have been kept in the end.
        saved: share of all their tokens that is then not decoded.
    """

    judge: str
    answers: int
    within: Estimate
    wrong: Estimate
    right: Estimate
    kept: Estimate
    saved: Estimate


def aborted(data: Data, after: int) -> list[GivenUp]:
    """With a regression of whole answers, and with one of halves; nothing where too few have more
    than `after` tokens to learn the latter."""
    learned = fit_profile(
        [
            LabelledDraft(asked(o), o.signals, o.right, partial_signals=_halves(o, after))
            for o in data.train
        ]
    )
    if learned.partial_regression is None:
        return []
    judge = replace(learned.confidence(), decide_after=after)
    judges = {
        "as if it ended there": replace(judge, partial_regression=None),
        "by what goes on": judge,
    }
    return [_worth(name, each, learned, data.test) for name, each in judges.items()]


def _halves(outcome: Outcome, after: int) -> tuple[Signals, ...]:
    """The signals of an answer each time that the client considers giving it up."""
    looks = range(after, len(outcome.steps), CHECK_EVERY)
    return tuple(signals_of(outcome.steps[:tokens]) for tokens in looks)


def _worth(
    name: str, judge: Confidence, learned: ConfidenceProfile, asked_of: Sequence[Outcome]
) -> GivenUp:
    seen = {one.key: _halves(one, judge.decide_after) for one in asked_of}
    outcomes = [one for one in asked_of if seen[one.key]]
    families, right = Families(outcomes), right_of(outcomes)
    first = np.zeros(len(outcomes))
    ended, kept = np.zeros(len(outcomes), bool), np.zeros(len(outcomes), bool)
    tokens = np.array([len(one.steps) for one in outcomes])
    decoded = tokens.copy()
    for at, one in enumerate(outcomes):
        odds = learned.classifier.log_odds(asked(one))
        halves = [replace(half, prompt_log_odds=odds) for half in seen[one.key]]
        first[at] = judge.partial_confidence(halves[0])
        kept[at] = judge.of(replace(one.signals, prompt_log_odds=odds)) >= judge.threshold
        predicts_wrong = next((half for half in halves if judge.predicts_wrong(half)), None)
        if predicts_wrong is not None:
            ended[at], decoded[at] = True, predicts_wrong.length

    def ended_of(kind: npt.NDArray[np.bool_], groups: list[Places]) -> float:
        places = np.concatenate(groups)
        places = places[kind[places]]
        return float(ended[places].mean()) if len(places) else 0.0

    def saved(groups: list[Places]) -> float:
        places = np.concatenate(groups)
        return 1 - float(decoded[places].sum() / tokens[places].sum())

    return GivenUp(
        name,
        len(outcomes),
        families.estimate(lambda groups: within_families(first, right, groups)),
        families.estimate(lambda groups: ended_of(~right, groups)),
        families.estimate(lambda groups: ended_of(right, groups)),
        families.estimate(lambda groups: ended_of(kept, groups)),
        families.estimate(saved),
    )
