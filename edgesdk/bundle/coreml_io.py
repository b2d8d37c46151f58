"""The two functions of every Core ML decoder in a bundle, and what goes into them.

`prefill` takes a fixed number of tokens and `decode` one; they share weights and KV cache. With S
tokens, and room for W in the cache:

    input_ids                int32   [1, S]
    position                 int32   [1]           where the first of them goes in the cache
    mask                     float16 [1, 1, S, W]  added to attention scores
    mask_{n}                 the same, for layers that see n tokens only
    rope_cos, rope_sin       float16 [1, 1, S, head_size]
    local_rope_cos, _sin     the same of windowed layers with a rope of their own

    key_cache, value_cache   states, float16 [layers, kv_heads, W, head_size]

    logits                   float16 [1, S, vocab]
    hidden_states            float16 [1, S, hidden]

A token stands in the cache at its own position. Of fewer than S tokens the rest is padding: it
writes behind them, where nothing is seen until something else is written there. So the cache has
places for the longest text and for S tokens more. Heads are rotated as in
`edgesdk.bundle.static_io`. Hidden states are those after the last norm.
"""

from __future__ import annotations

from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.spec import DecoderSpec

PREFILL, DECODE = "prefill", "decode"
INPUT_IDS, POSITION = "input_ids", "position"
KEY_CACHE, VALUE_CACHE = "key_cache", "value_cache"
LOGITS, HIDDEN_STATES = "logits", "hidden_states"


def mask_names(spec: DecoderSpec) -> dict[int | None, str]:
    """The mask of each window that a decoder's layers have."""
    return {
        window: "mask" if window is None else f"mask_{window}"
        for window in dict.fromkeys(spec.windows)
    }


def rope_names(rope: str) -> tuple[str, str]:
    """Names of the inputs that take a rope's cosines and sines."""
    return f"{rope}_cos", f"{rope}_sin"


def cache_room(shape: StaticShape) -> int:
    """Places of the cache, for texts of as many tokens as the window has."""
    return shape.window + shape.prefill_tokens


def cache_shape(spec: DecoderSpec, room: int) -> tuple[int, int, int, int]:
    """The shape of each of the two states, with room for so many tokens."""
    return spec.layers, spec.kv_heads, room, spec.head_size
