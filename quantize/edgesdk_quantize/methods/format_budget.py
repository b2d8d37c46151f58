"""Choose the format of each matrix, so that a model of a given size loses least.

Costs add up over matrices, so this is a multiple-choice knapsack. On the convex hull of each
matrix's (size, cost) points steps are taken in the order of what they gain per bit, which is
optimal but for the last step that no longer fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FormatOption:
    """One format that a matrix may have.

    Attributes:
        bits: stored bits of the whole matrix in it.
        cost: what it loses there, in any unit that adds up.
    """

    bits: float
    cost: float


def choose_formats(choices: Mapping[str, Sequence[FormatOption]], budget: float) -> dict[str, int]:
    """The index of each matrix's choice, within `budget` bits for all of them together.

    Raises:
        ValueError: even the smallest choices are larger.
    """
    hulls = {name: _hull(options) for name, options in choices.items()}
    chosen = dict.fromkeys(choices, 0)
    spent = sum(choices[name][hull[0]].bits for name, hull in hulls.items())
    if spent > budget:
        raise ValueError(f"the smallest choices take {spent:.0f} bits; the budget is {budget:.0f}")
    steps = sorted(
        (
            (-_slope(options[hull[k]], options[hull[k + 1]]), name, k + 1)
            for name, hull in hulls.items()
            for options in [choices[name]]
            for k in range(len(hull) - 1)
        ),
    )
    for _, name, place in steps:
        hull, options = hulls[name], choices[name]
        more = options[hull[place]].bits - options[hull[place - 1]].bits
        # Steps of one matrix come in order, each less steep: one that was skipped bars the rest.
        if chosen[name] == place - 1 and spent + more <= budget:
            chosen[name] = place
            spent += more
    return {name: hulls[name][place] for name, place in chosen.items()}


def _hull(options: Sequence[FormatOption]) -> list[int]:
    """The lower convex hull from the smallest option to the best one, as indices."""
    order = sorted(range(len(options)), key=lambda i: (options[i].bits, options[i].cost))
    hull: list[int] = []
    for index in order:
        if hull and options[index].cost >= options[hull[-1]].cost:
            continue
        while len(hull) > 1 and _slope(options[hull[-1]], options[index]) > _slope(
            options[hull[-2]], options[hull[-1]]
        ):
            hull.pop()
        hull.append(index)
    return hull


def _slope(smaller: FormatOption, larger: FormatOption) -> float:
    """The gain of each more bit."""
    return (smaller.cost - larger.cost) / (larger.bits - smaller.bits)
