"""Checks that every engine makes before it touches its KV cache, so that they fail alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgesdk.errors import ContextOverflow, InvalidOption, RequestError

TokenIds = npt.NDArray[np.int64]


def checked_ids(
    tokens: npt.ArrayLike, *, held: int, vocab_size: int, context_length: int
) -> TokenIds:
    """`tokens` as int64 [n], fit to be appended to a sequence that holds `held` tokens.

    Raises:
        RequestError: `tokens` is empty, not one-dimensional, not integers, or has an id outside
            0 <= id < vocab_size.
        ContextOverflow: held + n > context_length.
    """
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
    low, high = (given[0], given[0]) if given.size == 1 else (given.min(), given.max())
    if low < 0 or high >= vocab_size:
        raise RequestError(
            f"Token id {int(low if low < 0 else high)} is outside the vocabulary of {vocab_size}.",
            hint="Encode the text with this model's own tokenizer.",
        )
    total = held + given.size
    if total > context_length:
        raise ContextOverflow(
            f"{total} tokens do not fit the context of {context_length}"
            + (f" ({held} are in it already)." if held else "."),
            tokens=total,
            limit=context_length,
            hint=f"Shorten the text by {total - context_length} tokens, or start over.",
        )
    return given.astype(np.int64, copy=False)


def checked_rows(logits: str, count: int) -> int:
    """How many of `count` positions get logits: 1 for "last", all of them for "all".

    Raises:
        InvalidOption: `logits` is neither.
    """
    if logits == "last":
        return 1
    if logits == "all":
        return count
    raise InvalidOption(f"logits must be 'last' or 'all', not {logits!r}.")


def checked_length(length: int, *, held: int) -> int:
    """A length that a sequence of `held` tokens can be rewound to.

    Raises:
        RequestError: not 0 <= length <= held.
    """
    if not 0 <= length <= held:
        raise RequestError(f"Cannot rewind to {length}: the sequence holds {held} tokens.")
    return int(length)
