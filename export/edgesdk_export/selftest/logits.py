"""Compute the logits of a bundle's file, opened as its engine opens it.

Of a large file the weights stay mapped: the test must not need more memory than the export.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from edgesdk.errors import ExportError
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.selftest.llama_process import llama_ids, llama_logits
from edgesdk_export.selftest.onnx_decoder import Float32, Ids, SharedCacheDecoder, piecewise_logits
from edgesdk_export.selftest.weight_noise import checkpoint_logits

_LARGE_BYTES = 512 * 2**20


def onnx_logits(model_path: Path, ids: Ids, *, large: float = _LARGE_BYTES) -> Float32:
    """Compute logits float32 [n, vocab] of tokens int64 [n], n >= 3, in three calls over shared KV
    buffers: a first part, all of the rest but one token, and that token.

    Args:
        large: a model of more bytes is opened as a whole, with its weights only mapped, and then
            run in pieces: see `edgesdk_export.selftest.onnx_decoder`.

    Raises:
        ExportError: onnxruntime cannot open or run the file.
    """
    borders = [0, 2 * len(ids) // 3, len(ids) - 1, len(ids)]
    in_pieces = sum(file.stat().st_size for file in model_path.parent.iterdir()) > large
    try:
        run = SharedCacheDecoder(model_path, len(ids), _mapped() if in_pieces else None)
        if in_pieces:
            del run
            return piecewise_logits(model_path, ids, borders)
        return np.concatenate([run(ids[a:b], a) for a, b in itertools.pairwise(borders)])
    except Exception as error:
        raise ExportError(
            f"onnxruntime cannot run {model_path.name}, which was just written: {error}.",
            hint="This is a fault of the export; please report it with the checkpoint's name.",
        ) from error


def _mapped() -> onnxruntime.SessionOptions:
    """Nothing is folded or packed, so that a session maps its weights and reads none."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def gguf_logits(model_path: Path, ids: Ids) -> Float32:
    """The same of a GGUF: llama.cpp's where llama-cpp-python is installed, else those of the file
    read back and computed in float32.

    Raises:
        ExportError: llama.cpp cannot open or run the file.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        return checkpoint_logits(read_decoder(open_checkpoint(model_path)), ids, None)
    return llama_logits(model_path, ids)


def gguf_encoder(model_path: Path) -> Callable[[Sequence[str]], list[list[int]]] | None:
    """What makes token ids of texts by a GGUF's own vocabulary; None without llama-cpp-python."""
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    return functools.partial(llama_ids, model_path)
