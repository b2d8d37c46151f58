"""From a finished answer to its value."""

from __future__ import annotations

from typing import Any

from edgesdk.decode.constraint import Constraint
from edgesdk.decode.loop import FinishReason
from edgesdk.errors import IncompleteStructure
from edgesdk.structure.asking import Structure

_CUT = {
    "length": ("the tokens ran out", "Raise max_tokens, or bound the form's texts and lists."),
    "deadline": ("the deadline passed", "Allow more time, or ask for less."),
    "stop": ("the model ended it", "Try again."),
}


def value_of(
    structure: Structure, constraint: Constraint, text: str, reason: FinishReason
) -> Any | None:
    """The value of an answer that ended for `reason`; None where the caller ended it.

    Raises:
        IncompleteStructure: it was cut short.
        RejectedStructure: it has its form, and still is no value.
    """
    if reason == "cancelled":
        return None
    if not constraint.complete:
        what, hint = _CUT[reason]
        raise IncompleteStructure(
            f"The answer is incomplete: {what} after {len(text):,} characters.",
            text=text,
            hint=hint,
        )
    return structure.read(text)


def value_of_free(structure: Structure, text: str, reason: FinishReason) -> Any | None:
    """`value_of` for a structure without a grammar: any text may be read."""
    return None if reason == "cancelled" else structure.read(text)
