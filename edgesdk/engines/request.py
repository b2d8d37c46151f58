"""Checks that every engine makes before it touches its KV cache, so that they fail alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgesdk.errors import ContextOverflow, InvalidOption, RequestError


def checked_ids(
    tokens: npt.ArrayLike | list[int], *, held: int, vocab_size: int, context_length: int
) -> list[int]:
    """`tokens`, fit to be appended to a sequence that holds `held` tokens.

    Raises:
        RequestError: `tokens` is empty, not one-dimensional, not integers, or has an id outside
            0 <= id < vocab_size.
        ContextOverflow: held + n > context_length.
    """
    # The way of a decode loop. After a pass over the weights numpy's code is no longer in the
    # processor's caches, and asking it about one integer takes 50 us.
    if isinstance(tokens, list) and len(tokens) == 1 and type(tokens[0]) is int:
        ids, low, high = tokens, tokens[0], tokens[0]
    else:
        ids, low, high = _ids_of(tokens)
    if low < 0 or high >= vocab_size:
        raise RequestError(
            f"Token id {low if low < 0 else high} is outside the vocabulary of {vocab_size}.",
            hint="Encode the text with this model's own tokenizer.",
        )
    total = held + len(ids)
    if total > context_length:
        raise ContextOverflow(
            f"{total} tokens do not fit the context of {context_length}"
            + (f" ({held} are in it already)." if held else "."),
            tokens=total,
            limit=context_length,
            hint=f"Shorten the text by {total - context_length} tokens, or start over.",
        )
    return ids


def _ids_of(tokens: npt.ArrayLike) -> tuple[list[int], int, int]:
    try:
        given = np.asarray(tokens)
    except (ValueError, OverflowError) as error:
        raise RequestError(f"The tokens are not a list of integers: {error}.") from None
    if given.ndim != 1 or given.size == 0:
        raise RequestError(
            f"There must be at least one token, in one dimension; got shape {given.shape}."
        )
    if given.dtype.kind not in "iu":
        raise RequestError(f"Token ids must be integers; got {given.dtype}.")
    return given.tolist(), int(given.min()), int(given.max())


def checked_rows(logits: str, count: int) -> int:
    """How many of `count` positions get logits: 1 for "last", else all of them.

    Raises:
        InvalidOption: `logits` is not one of `edgesdk.engines.base.Rows`.
    """
    if logits == "last":
        return 1
    if logits in ("all", "each"):
        return count
    raise InvalidOption(f"logits must be 'last', 'all' or 'each', not {logits!r}.")


def checked_length(length: int, *, held: int) -> int:
    """A length that a sequence of `held` tokens can be rewound to.

    Raises:
        RequestError: not 0 <= length <= held.
    """
    if not 0 <= length <= held:
        raise RequestError(f"Cannot rewind to {length}: the sequence holds {held} tokens.")
    return int(length)
