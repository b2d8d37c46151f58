"""Measures whether a device computes many tokens in one call as it computes few of them.

Kernels for prefills may take for granted how many lanes of a GPU work together, and give other
numbers without a word where that is wrong: onnxruntime's on WebGPU did so on NVIDIA's
(https://github.com/microsoft/onnxruntime/pull/28520), and do so on SwiftShader.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgesdk.engines.base import Logits
from edgesdk.system.cancellation import Cancelled

# Tokens of a call that no device was found to compute wrongly.
SHORT_CALL = 16
# Several tiles of the kernels that take over at 32 tokens.
_LONG_CALL = 80
# Of the spread of the logits; kernels that add in another order stay a thousand times below.
_TOLERANCE = 0.01


def long_calls_are_right(
    run: Callable[[list[int], bool], Logits], vocab_size: int, context_length: int
) -> bool | None:
    """Compare the logits of one call for many tokens with those of several calls for few of them.

    Args:
        run: gives the logits after some tokens, float32 [1, vocab]: by one call, or, where its
            second argument is False, by calls for up to `SHORT_CALL` of them.

    Returns:
        None where that cannot be measured, for lack of memory or of context.

    Raises:
        Cancelled: before there was an answer.
    """
    count = min(_LONG_CALL, context_length)
    if count <= SHORT_CALL:
        return None
    ids = np.random.default_rng(1).integers(0, vocab_size, count).tolist()
    try:
        wanted, found = run(ids, False), run(ids, True)
    except Cancelled:
        raise
    # Memory, or onnxruntime, whose exceptions have no common base. Short calls still work.
    except Exception:
        return None
    spread = float(wanted.max() - wanted.min())
    return bool(np.abs(found - wanted).max() <= _TOLERANCE * spread)
