"""The inputs and outputs of every ONNX decoder in a bundle, whoever built its graph.

    input_ids                     int64   [batch, sequence]
    logits_from                   int64   [1]        logits are computed for positions >= this one
    seqlens_k                     int32   [batch]    tokens in the KV cache after this call, minus 1
    total_sequence_length         int32   []         the largest of those, without the minus 1
    past_key_values.{i}.key       float32 [batch, kv_heads, capacity, head_size]
    past_key_values.{i}.value     float32 [batch, kv_heads, capacity, head_size]
    rope.cos, rope.sin            float32 [rows, rotary_size / 2]     have values where not given
    local_rope.cos, .sin          the same of windowed layers with a rope of their own
    {matrix}.lora_a               float32 [columns, rank]           in the graphs of adapters only
    {matrix}.lora_b               float32 [rank, rows]

    logits                        float32 [batch, sequence - logits_from, vocab]
    hidden_states                 float32 [batch, sequence - logits_from, hidden]   may be missing
    present.{i}.key               the same buffer as past_key_values.{i}.key
    present.{i}.value             the same buffer as past_key_values.{i}.value

Hidden states are what the head makes logits of: those after the last norm. `capacity` may be
any number >= `total_sequence_length`; the caller owns the buffers and binds each of them as past
and as present, so that a call writes its new keys and values in place.

The file holds rope tables for the first positions only (`ROPE_POSITIONS`). Longer texts need
those of `edgesdk.bundle.rope.rope_tables`. Graphs of older bundles hold whole tables and do not
take these inputs.

An adapter's graph adds x lora_a lora_b to what a matrix makes of x. The matrices are
"layers.{i}.qkv" (the columns of q, k and v one after another), ".o", ".gate", ".up", ".down" of
each layer, and "head".
"""

from __future__ import annotations

from edgesdk.bundle.spec import DecoderSpec, RopeSpec

INPUT_IDS = "input_ids"
LOGITS_FROM = "logits_from"
SEQLENS_K = "seqlens_k"
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"
LOGITS = "logits"
HIDDEN_STATES = "hidden_states"


# Positions whose rope tables are in the file, so that onnxruntime alone runs texts of some length.
ROPE_POSITIONS = 4096


def rope_names(rope: str) -> tuple[str, str]:
    """Names of the inputs that take a rope's cosines and sines."""
    return f"{rope}.cos", f"{rope}.sin"


def rope_name(spec: DecoderSpec, layer: int) -> str:
    """The name of a layer's rope."""
    return "rope" if spec.rope_of(layer) == spec.rope else "local_rope"


def ropes(spec: DecoderSpec) -> dict[str, RopeSpec]:
    """The ropes that a decoder's layers use, by name."""
    return {rope_name(spec, layer): spec.rope_of(layer) for layer in range(spec.layers)}


def past_names(layer: int) -> tuple[str, str]:
    """Names of the past key and value inputs of one layer."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Names of the present key and value outputs of one layer."""
    return f"present.{layer}.key", f"present.{layer}.value"


def lora_names(matrix: str) -> tuple[str, str]:
    """Names of the inputs that take an adapter's weights for a matrix."""
    return f"{matrix}.lora_a", f"{matrix}.lora_b"
