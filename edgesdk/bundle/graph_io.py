"""The inputs and outputs of every ONNX decoder in a bundle, whoever built its graph.

    input_ids                     int64   [batch, sequence]
    logits_from                   int64   [1]        logits are computed for positions >= this one
    seqlens_k                     int32   [batch]    tokens in the KV cache after this call, minus 1
    total_sequence_length         int32   []         the largest of those, without the minus 1
    past_key_values.{i}.key       float32 [batch, kv_heads, capacity, head_size]
    past_key_values.{i}.value     float32 [batch, kv_heads, capacity, head_size]

    logits                        float32 [batch, sequence - logits_from, vocab]
    hidden_states                 float32 [batch, sequence - logits_from, hidden]   may be missing
    present.{i}.key               the same buffer as past_key_values.{i}.key
    present.{i}.value             the same buffer as past_key_values.{i}.value

Hidden states are what the head makes logits of: those after the last norm. `capacity` may be
any number >= `total_sequence_length`; the caller owns the buffers and binds each of them as past
and as present, so that a call writes its new keys and values in place.
"""

from __future__ import annotations

INPUT_IDS = "input_ids"
LOGITS_FROM = "logits_from"
SEQLENS_K = "seqlens_k"
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"
LOGITS = "logits"
HIDDEN_STATES = "hidden_states"


def past_names(layer: int) -> tuple[str, str]:
    """Names of the past key and value inputs of one layer."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Names of the present key and value outputs of one layer."""
    return f"present.{layer}.key", f"present.{layer}.value"
