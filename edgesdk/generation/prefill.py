"""A prompt goes through the engine in chunks."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as TokenIds

import numpy as np

from edgesdk.engines.base import DecodeState, Logits
from edgesdk.system.cancellation import Cancelled

# Of one size and not of one duration: the rounding of quantized kernels depends on the size, and
# an answer must not depend on how busy the device is. An engine ends a chunk at once when its
# caller stops; between chunks other callers come in, and a power policy's pauses.
PREFILL_CHUNK = 512


def prefill(
    state: DecodeState, ids: TokenIds[int], *, stopped: Callable[[], object] = lambda: False
) -> Logits:
    """Append `ids` (n >= 1).

    Args:
        stopped: asked before each chunk, for callers that the engine does not know of.

    Returns:
        Logits after the last of them, float32 [1, vocab]; see `DecodeState.extend`.

    Raises:
        Cancelled: `stopped` said so; whole chunks may have been appended.
        What `DecodeState.extend` raises.
    """
    tokens = np.array(ids, np.int64)
    for start in range(0, len(tokens), PREFILL_CHUNK):
        if stopped():
            raise Cancelled
        logits = state.extend(tokens[start : start + PREFILL_CHUNK])
    return logits
