"""Compare the new model with the old one, and say whether it is the better one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgesdk.hybrid.confidence.threshold import binomial_tail
from edgesdk.model import Model
from edgesdk_export.distill.verifiers import Verifier
from edgesdk_export.flywheel.answers import right_answers
from edgesdk_export.flywheel.examples import Example
from edgesdk_export.flywheel.recipe import DecidingRecipe
from edgesdk_export.flywheel.regression import (
    RegressionFigure,
    RegressionSet,
    measure_regressions,
)


@dataclass(frozen=True)
class Verdict:
    """Whether a new model is better than the old one.

    Attributes:
        better: it is to be promoted.
        reason: why, or why not, in a sentence.
        prompts: how many held-out prompts were asked,
        old_right, new_right: how many answers were right;
        gained, lost: how many only the new model got right, and only the old one.
        chance: the probability of as large a gain where both are equally good.
        regressions: the figures that must not become worse.
    """

    better: bool
    reason: str
    prompts: int
    old_right: int
    new_right: int
    gained: int
    lost: int
    chance: float
    regressions: tuple[RegressionFigure, ...]


def compare(
    old: Model,
    new: Model,
    held_out: Sequence[Example],
    regression: RegressionSet,
    recipe: DecidingRecipe,
    verifier: Verifier,
) -> Verdict:
    """Compare two models on held-out prompts and on a regression set.

    The new one is better where it gets more prompts right, so many more that it is no luck, and is
    worse in none of the regression set's figures.
    """
    before, after = (
        right_answers(model, held_out, max_tokens=recipe.max_tokens, verifier=verifier)
        for model in (old, new)
    )
    figures = measure_regressions(old, new, regression, recipe)
    return judge(before, after, figures, recipe)


def judge(
    before: Sequence[bool],
    after: Sequence[bool],
    figures: Sequence[RegressionFigure],
    recipe: DecidingRecipe,
) -> Verdict:
    """Judge what was measured.

    Args:
        before, after: whether each answer of the old and of the new model is right.
    """
    gained = sum(new and not old for old, new in zip(before, after, strict=True))
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    chance = sign_test(gained, lost)
    worse = [figure for figure in figures if not figure.kept]
    more = f"{sum(after)} of {len(after)} held-out prompts right, {sum(before)} before"
    if chance > recipe.chance:
        reason = f"{more}: that may be luck ({chance:.2g})."
    elif worse:
        first = worse[0]
        reason = f"{more}, but {first.name} went from {first.old:.4g} to {first.new:.4g}."
    else:
        reason = f"{more}; nothing became worse."
    better = chance <= recipe.chance and not worse
    return Verdict(
        better, reason, len(after), sum(before), sum(after), gained, lost, chance, tuple(figures)
    )


def sign_test(gained: int, lost: int) -> float:
    """The probability of at least so many gains among the changes, were each as likely a loss.

    The exact one-sided test of McNemar (Psychometrika 12, 1947) for paired answers.
    """
    changed = gained + lost
    return 1.0 if changed == 0 else binomial_tail(lost, changed, 0.5)
