"""Write a BERT as a GGUF that llama.cpp runs in its embedding mode.

Names, metadata and the spelling of WordPiece's entries: `BertModel` in llama.cpp's converter, and
`LLAMA_VOCAB_TYPE_WPM` in src/llama-vocab.cpp.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from edgesdk_quantize.formats import ggml
from edgesdk_quantize.formats.ggml import GgmlFormat

from edgesdk.bundle.encoder_spec import EncoderSpec, encoder_shapes
from edgesdk.bundle.manifest import EmbeddingEntry
from edgesdk.errors import CheckpointError, ExportError
from edgesdk_export.gguf.container import TensorPlan, Value, write_container
from edgesdk_export.gguf.file_types import FileType
from edgesdk_export.onnx.encoder_writer import quantized_weights
from edgesdk_export.tokenizers.gguf_vocabulary import TokenKind
from edgesdk_export.weights import Encoder, LazyTensor, require_finite, row_chunks

MODEL_FILE = "model.gguf"
_NAMES = {
    "embed": "token_embd",
    "positions": "position_embd",
    "token_types": "token_types",
    "embed_norm": "token_embd_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "attention_norm": "attn_output_norm",
    "up": "ffn_up",
    "down": "ffn_down",
    "mlp_norm": "layer_output_norm",
}
_POOLINGS = {"mean": 1, "cls": 2, "last": 3}
_SPECIAL = {
    "[UNK]": "unknown_token_id",
    "[SEP]": "seperator_token_id",
    "[PAD]": "padding_token_id",
    "[CLS]": "cls_token_id",
    "[MASK]": "mask_token_id",
}
_HINT = "Export to ONNX instead."


def write_gguf_encoder(
    encoder: Encoder,
    folder: Path,
    file_type: FileType,
    progress: Callable[[int], object],
    *,
    name: str,
    tokenizer_json: bytes,
    entry: EmbeddingEntry,
) -> float:
    """Write `model.gguf`; positions, token types and vectors are float32. Returns the bits per
    weight.

    Raises:
        ExportError: llama.cpp has no such encoder, or a weight cannot be stored.
        CheckpointError: it has no such tokenizer.
    """
    spec = encoder.spec
    if spec.family != "bert" or spec.activation != "gelu" or spec.head is not None:
        raise ExportError(
            "Only BERT with its own activation, without a head of scores, is written as GGUF;"
            f" this is {spec.family} with {spec.activation}.",
            hint=_HINT,
        )
    rounded, plans, last = quantized_weights(spec), [], {}
    for canonical, shape in encoder_shapes(spec).items():
        *at, part, kind = canonical.split(".")
        target = f"{f'blk.{at[1]}.' if at else ''}{_NAMES[part]}.{kind}"
        fmt = ggml.F32
        if canonical in rounded:
            base = file_type.base
            fmt = base if file_type.is_float else ggml.fallback(base, shape[-1])
        weight = encoder.weights[canonical]
        chunks = functools.partial(_chunks, canonical, weight, fmt)
        plans.append(TensorPlan(target, shape, fmt, chunks))
        if at:
            last[target] = int(at[1])

    def written(tensor: str) -> None:
        progress(last.get(tensor, 0))

    metadata: dict[str, Value] = {
        **_metadata(spec, entry),
        "general.name": name,
        "general.file_type": int(file_type.number),
        **_vocabulary(json.loads(tokenizer_json), spec),
    }
    write_container(folder / MODEL_FILE, metadata, plans, written=written)
    weights = sum(math.prod(plan.shape) for plan in plans)
    return 8 * sum(plan.size for plan in plans) / weights


def _metadata(spec: EncoderSpec, entry: EmbeddingEntry) -> dict[str, Value]:
    values: dict[str, Value] = {
        "context_length": spec.context_length,
        "embedding_length": spec.hidden_size,
        "block_count": spec.layers,
        "feed_forward_length": spec.intermediate_size,
        "attention.head_count": spec.heads,
        "attention.layer_norm_epsilon": spec.norm_eps,
        "attention.causal": False,
        "pooling_type": _POOLINGS[entry.pooling],
    }
    return {"general.architecture": "bert", **{f"bert.{key}": v for key, v in values.items()}}


def _vocabulary(parts: dict[str, Any], spec: EncoderSpec) -> dict[str, Value]:
    model, normalizer = parts.get("model") or {}, parts.get("normalizer") or {}
    # llama.cpp always writes small letters, without accents.
    plain = normalizer.get("lowercase") and normalizer.get("strip_accents") is not False
    if model.get("type") != "WordPiece" or normalizer.get("type") != "BertNormalizer" or not plain:
        raise CheckpointError(
            "llama.cpp has no tokenizer like the checkpoint's: its WordPiece is of small letters.",
            hint=_HINT,
        )
    ids = {**model["vocab"], **{each["content"]: each["id"] for each in parts["added_tokens"]}}
    control = {each["content"] for each in parts["added_tokens"] if each["special"]}
    start = model.get("continuing_subword_prefix") or "##"
    tokens = [f"[unused_{i}]" for i in range(spec.vocab_size)]
    kinds = np.full(spec.vocab_size, TokenKind.UNUSED, np.int32)
    for piece, i in ids.items():
        special = piece in control
        kinds[i] = TokenKind.CONTROL if special else TokenKind.NORMAL
        # A word's first piece gets the space before it; a later one loses its mark.
        word = piece[len(start) :] if piece.startswith(start) else f"▁{piece}"
        tokens[i] = piece if special else word
    named = {f"tokenizer.ggml.{key}": ids[piece] for piece, key in _SPECIAL.items() if piece in ids}
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.token_type_count": spec.token_types,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        **({"tokenizer.ggml.bos_token_id": ids["[CLS]"]} if "[CLS]" in ids else {}),
        **named,
    }


def _chunks(name: str, weight: LazyTensor, fmt: GgmlFormat) -> Iterator[npt.NDArray[Any]]:
    start = 0
    for chunk in row_chunks(weight):
        require_finite(name, chunk, first_row=start)
        start += len(chunk)
        try:
            yield chunk if fmt == ggml.F32 else fmt.quantize(chunk, None)
        except ValueError as error:
            raise ExportError(
                f"Weight {name}: {error}.", hint="Choose another type, such as f32."
            ) from None
