"""Name the signatures of a decoder's `.tflite`, their inputs and their outputs.

The exporter writes these names and the engine reads them. "prefill" and "decode", their inputs and
the caches are as LiteRT-LM knows them. W is the window: how many tokens the caches hold.

    prefill   S tokens, padded behind the last   -> hidden states, caches
    decode    one token                          -> logits, hidden states, caches
    head      hidden states of S tokens          -> logits
"""

from __future__ import annotations

PREFILL, DECODE, HEAD = "prefill", "decode", "head"

# int32 [1, S], and int32 [S]: consecutive positions, of which the first says where in the caches
# the keys and values go.
TOKENS, POSITIONS = "tokens", "input_pos"

# float32 [1, S, vocab], and float32 [1, S, hidden]: the states that the logits are made of.
LOGITS, HIDDEN_STATES = "logits", "hidden_states"


def cache_names(layer: int) -> tuple[str, str]:
    """Keys and values of a layer, float32 [1, kv_heads, W, head_size], by position."""
    return f"kv_cache_k_{layer}", f"kv_cache_v_{layer}"
