"""What it is worth to give an answer up half-way: does a look at its first tokens tell whether it
will be right, and what of the decoding is saved at which loss?

What is learned, is learned from the training split. Only answers that are long enough count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from hybrid_outcomes import Outcome
from hybrid_policies import asked, right_of
from hybrid_report import Data
from hybrid_statistics import Estimate, Families, Places, within_families

from edgesdk.hybrid.drafting import CONSIDERED_EVERY
from edgesdk.hybrid.learning import Example, Learned, learn
from edgesdk.hybrid.trust.confidence import Confidence
from edgesdk.hybrid.trust.signals import Signals, signals_of

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GivenUp:
    """One way to judge answers that go on.

    Attributes:
        answers: of the test split that were judged half-way.
        within: AUROC of the first judgement, within families.
        wrong, right: shares of the wrong and of the right answers that are given up.
        saved: share of all their tokens that is then not decoded.
    """

    judge: str
    answers: int
    within: Estimate
    wrong: Estimate
    right: Estimate
    saved: Estimate


def given_up(data: Data) -> list[GivenUp]:
    """With a regression of whole answers, and with one of halves; nothing where answers are too
    short to learn the latter."""
    learned = learn([Example(asked(o), o.signals, o.right, halfway=halves(o)) for o in data.train])
    if learned.halfway is None:
        return []
    judges = {
        "as if it ended there": Confidence(learned.regression),
        "by what goes on": learned.confidence(),
    }
    long = [outcome for outcome in data.test if halves(outcome)]
    return [_worth(name, judge, learned, long) for name, judge in judges.items()]


def halves(outcome: Outcome) -> tuple[Signals, ...]:
    """The signals of an answer each time that the client considers giving it up."""
    looks = range(Confidence.decide_after, len(outcome.steps), CONSIDERED_EVERY)
    return tuple(signals_of(outcome.steps[:tokens]) for tokens in looks)


def _worth(name: str, judge: Confidence, learned: Learned, outcomes: Sequence[Outcome]) -> GivenUp:
    families, right = Families(outcomes), right_of(outcomes)
    first = np.zeros(len(outcomes))
    ended = np.zeros(len(outcomes), bool)
    tokens = np.array([len(one.steps) for one in outcomes])
    decoded = tokens.copy()
    for at, one in enumerate(outcomes):
        odds = learned.prompts.log_odds(asked(one))
        seen = [replace(half, prompt_log_odds=odds) for half in halves(one)]
        first[at] = judge.halfway_of(seen[0])
        hopeless = next((half for half in seen if judge.hopeless(half)), None)
        if hopeless is not None:
            ended[at], decoded[at] = True, hopeless.length

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
        families.estimate(saved),
    )
