"""How a prompt gets into a decode state: what fits, what is there already, the rest in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgesdk.engines.base import DecodeState, Logits
from edgesdk.errors import ContextOverflow, EmptyPrompt
from edgesdk.system.cancellation import Cancelled

# Of one size and not of one duration: the rounding of quantized kernels depends on the size, and
# an answer must not depend on how busy the device is. An engine ends a chunk at once when its
# answer is cancelled; between chunks other answers come in, and a power policy's pauses.
PREFILL_CHUNK = 512


def prefill(
    state: DecodeState, ids: Sequence[int], *, stopped: Callable[[], object] = lambda: False
) -> Logits:
    """Append `ids` (n >= 1).

    Args:
        stopped: asked before each chunk, for reasons that the engine does not know of.

    Returns:
        Logits after the last of them, float32 [1, vocab]; see `DecodeState.extend`.

    Raises:
        Cancelled: `stopped` returned something true; whole chunks may have been appended.
        What `DecodeState.extend` raises.
    """
    tokens = np.array(ids, np.int64)
    start = 0
    while start < len(tokens):
        if stopped():
            raise Cancelled
        left = len(tokens) - start
        # One token left over would meet the kernels of a single step, which round otherwise.
        count = PREFILL_CHUNK // 2 if left == PREFILL_CHUNK + 1 else min(left, PREFILL_CHUNK)
        logits = state.extend(tokens[start : start + count])
        start += count
    return logits


def reusable_prefix(state: DecodeState, prompt: Sequence[int], step: int) -> int:
    """How many tokens at the start of `prompt` need not be computed again.

    With what `state` holds of them a prefill of the rest gives the logits of a prefill of the
    whole prompt, bit for bit.

    Args:
        state: holds what a prefill computed, where `step` is not 0.
        step: `EngineInfo.prefill_step`.
    """
    # At least one token must be computed, because its logits are wanted.
    count = common_prefix(state.tokens, prompt[:-1])
    if step == 0:
        return count
    # Two, since a single token meets other kernels than those of a prefill.
    return max(0, min(count, len(prompt) - 2)) // step * step


def check_fits(tokens: int, context_length: int) -> None:
    """Raise unless a prompt of `tokens` leaves room for an answer; see `generate`."""
    if tokens == 0:
        raise EmptyPrompt("The prompt has no tokens.", hint="Ask something.")
    limit = context_length - 1
    if tokens > limit:
        raise ContextOverflow(
            f"The prompt has {tokens:,} tokens; {limit:,} fit (the context holds"
            f" {context_length:,}, and the answer needs at least one).",
            tokens=tokens,
            limit=limit,
            hint=f"Take out at least {tokens - limit:,} tokens, or load the model with a larger"
            " context if it has one.",
        )


def common_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many ids at the start are the same."""
    count = 0
    for mine, theirs in zip(held, wanted, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
