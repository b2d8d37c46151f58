"""The inputs and outputs of decoders whose graphs have fixed shapes, as NPUs want them.

A bundle has two such graphs over the same weights: "prefill" takes T = `prefill_tokens` tokens at a
time, "decode" T = 1. F is `dtype`, W is `window`; see `edgesdk.bundle.manifest.StaticShape`.

    input_ids                 int32 [1, T]
    mask, mask.{w}            F [1, 1, T, W + T]   added to the scores of all layers without a
                                                   window, and of those with a window of w tokens
    rope.cos, rope.sin        F [1, 1, T, head_size]
    local_rope.cos, .sin      the same of windowed layers with a rope of their own
    past_key.{i}, past_value.{i}  F [1, kv_heads, W, head_size]

    logits                    F [1, R, vocab]      of the last R tokens: `logits_rows` in prefill,
    hidden_states             F [1, R, hidden]     1 in decode
    new_key.{i}, new_value.{i}    F [1, kv_heads, T, head_size]

The caller owns the window: the token at position p lies in slot p % W, whatever is in the others,
and the mask says which count. So nothing moves when a token is added. Keys are stored with their
rope. A call for fewer than T tokens has them at the end of its rows, and any others before them,
which the mask hides.

A head x is rotated as x * cos + swapped(x) * sin, where swapped(x) has the two halves of the
rotated values change places; sin has the sign of each value, and values that are not rotated have
a cosine of 1 and a sine of 0.
"""

from __future__ import annotations

from typing import TypeAlias

from edgesdk.bundle import graph_io
from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.spec import DecoderSpec

INPUT_IDS = graph_io.INPUT_IDS
LOGITS = graph_io.LOGITS
HIDDEN_STATES = graph_io.HIDDEN_STATES

# The type and the shape of each input or output, by name.
Ports: TypeAlias = dict[str, tuple[str, tuple[int, ...]]]


def mask_name(window: int | None) -> str:
    """The name of the mask of layers with that window."""
    return "mask" if window is None else f"mask.{window}"


def past_names(layer: int) -> tuple[str, str]:
    """Names of the past key and value inputs of one layer."""
    return f"past_key.{layer}", f"past_value.{layer}"


def new_names(layer: int) -> tuple[str, str]:
    """Names of the new key and value outputs of one layer."""
    return f"new_key.{layer}", f"new_value.{layer}"


def input_ports(spec: DecoderSpec, shape: StaticShape, tokens: int) -> Ports:
    """The inputs of a graph of so many tokens, in order."""
    dtype, columns = shape.dtype, shape.window + tokens
    ports: Ports = {INPUT_IDS: ("int32", (1, tokens))}
    for window in spec.windows:
        ports[mask_name(window)] = (dtype, (1, 1, tokens, columns))
    for rope in graph_io.ropes(spec):
        for name in graph_io.rope_names(rope):
            ports[name] = (dtype, (1, 1, tokens, spec.head_size))
    cache = (1, spec.kv_heads, shape.window, spec.head_size)
    for layer in range(spec.layers):
        ports.update(dict.fromkeys(past_names(layer), (dtype, cache)))
    return ports


def output_ports(spec: DecoderSpec, shape: StaticShape, tokens: int) -> Ports:
    """The outputs of a graph of so many tokens, in order."""
    dtype, rows = shape.dtype, min(shape.logits_rows, tokens)
    ports: Ports = {
        LOGITS: (dtype, (1, rows, spec.vocab_size)),
        HIDDEN_STATES: (dtype, (1, rows, spec.hidden_size)),
    }
    cache = (1, spec.kv_heads, tokens, spec.head_size)
    for layer in range(spec.layers):
        ports.update(dict.fromkeys(new_names(layer), (dtype, cache)))
    return ports


def context_of(spec: DecoderSpec, window: int) -> int:
    """Most tokens that a sequence may hold with that KV window.

    Where every layer looks back no further than the window reaches, older tokens may go, and the
    model's own context is the limit.
    """
    if all(own is not None and own <= window + 1 for own in spec.windows):
        return spec.context_length
    return min(spec.context_length, window)
