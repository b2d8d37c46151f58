"""Write an adapter for a GGUF bundle, as llama.cpp reads it.

A tensor W of the model has W.lora_a [rank, columns] and W.lora_b [rows, rank]. `adapter.lora.alpha`
is 0, which stands for no scale of llama.cpp's own: PEFT's scales differ from module to module, and
are in lora_b already (llama.cpp's src/llama-adapter.cpp and convert_lora_to_gguf.py).
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from edgesdk_quantize.formats import ggml

from edgesdk.bundle.spec import DecoderSpec, canonical_shapes
from edgesdk_export.adapters.low_rank import LowRankChange, LowRankWeights
from edgesdk_export.gguf.container import TensorPlan, Value, write_container
from edgesdk_export.gguf.decoder_metadata import decoder_metadata
from edgesdk_export.gguf.tensors import TargetTensor, interleave, target_tensors
from edgesdk_export.weights import Float32

WEIGHTS_FILE = "adapter.gguf"


def write_gguf_adapter(
    weights: LowRankWeights, spec: DecoderSpec, folder: Path, dtype: str, *, name: str
) -> None:
    """Write the adapter into `folder`.

    Args:
        dtype: "float16" or "float32", of the weights in the file.
        name: what the adapter calls itself.
    """
    fmt = ggml.F16 if dtype == "float16" else ggml.F32
    plans = []
    for tensor in target_tensors(spec):
        parts = [part.rpartition(".")[0] for part in tensor.parts]
        if not tensor.name.endswith(".weight") or not any(p in weights.changes for p in parts):
            continue
        for side, values in zip(("a", "b"), _stacked(tensor, parts, weights, spec), strict=True):
            stored = np.ascontiguousarray(values.astype(dtype))
            plans.append(
                TensorPlan(
                    f"{tensor.name}.lora_{side}",
                    values.shape,
                    fmt,
                    functools.partial(tuple, (stored,)),
                )
            )
    metadata: dict[str, Value] = {
        "general.type": "adapter",
        "general.architecture": decoder_metadata(spec)["general.architecture"],
        "general.name": name,
        "adapter.type": "lora",
        "adapter.lora.alpha": 0.0,
    }
    write_container(folder / WEIGHTS_FILE, metadata, plans, written=lambda _: None)


def _stacked(
    tensor: TargetTensor, parts: list[str], weights: LowRankWeights, spec: DecoderSpec
) -> tuple[Float32, Float32]:
    """The changes of the layers that one tensor holds as one: [ranks, columns], [rows, ranks]."""
    shapes = canonical_shapes(spec)
    present: list[LowRankChange] = []
    rows: list[Float32] = []
    ranks = sum(weights.changes[part].rank for part in parts if part in weights.changes)
    for part in parts:
        block = np.zeros((shapes[f"{part}.weight"][0], ranks), np.float32)
        change = weights.changes.get(part)
        if change is not None:
            first = sum(other.rank for other in present)
            up = change.up
            if tensor.interleaved_head is not None:
                up = interleave(up, tensor.interleaved_head)
            block[:, first : first + change.rank] = up
            present.append(change)
        rows.append(block)
    return np.concatenate([change.down for change in present]), np.concatenate(rows)
