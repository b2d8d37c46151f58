"""Compute the logits of a bundle's file, opened as its engine opens it.

Of a large file the weights stay mapped: the test must not need more memory than the export.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgesdk.errors import ExportError
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.selftest.onnx_decoder import Float32, Ids, SharedCacheDecoder, piecewise_logits
from edgesdk_export.selftest.weight_noise import checkpoint_logits

_LARGE_BYTES = 512 * 2**20
_FLOAT32 = 0  # GGML_TYPE_F32 in ggml.h
_FLASH_ATTENTION_OFF = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED in llama.h


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
        raise _unusable(model_path, "onnxruntime", str(error)) from error


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
    # llama-cpp-python prints llama.cpp's log to stderr, warnings as errors.
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
    from llama_cpp import llama_cpp as api

    api.llama_backend_init()
    params = api.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = False
    model = api.llama_model_load_from_file(str(model_path).encode(), params)
    if not model:
        raise _unusable(model_path, "llama.cpp", "it cannot be loaded")
    try:
        return _llama_logits(api, model, model_path, ids)
    finally:
        api.llama_model_free(model)


def _llama_logits(api: Any, model: Any, model_path: Path, ids: Ids) -> Float32:
    count, vocab = len(ids), api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    options = api.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = count
    if hasattr(options, "n_outputs_max_per_seq"):
        options.n_outputs_max_per_seq = 0
    options.type_k = options.type_v = _FLOAT32
    options.flash_attn_type = _FLASH_ATTENTION_OFF
    context = api.llama_init_from_model(model, options)
    if not context:
        raise _unusable(model_path, "llama.cpp", "it makes no context")
    batch = api.llama_batch_init(count, 0, 1)
    try:
        batch.n_tokens = count
        for position, token in enumerate(ids):
            batch.token[position], batch.pos[position] = int(token), position
            batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
            batch.logits[position] = 1
        status = api.llama_decode(context, batch)
        if status:
            raise _unusable(model_path, "llama.cpp", f"llama_decode gives {status}")
        rows = np.ctypeslib.as_array(api.llama_get_logits(context), (count, vocab))
        return np.array(rows, np.float32)
    finally:
        api.llama_batch_free(batch)
        api.llama_free(context)


def _unusable(model_path: Path, engine: str, why: str) -> ExportError:
    return ExportError(
        f"{engine} cannot run {model_path.name}, which was just written: {why}.",
        hint="This is a fault of the export; please report it with the checkpoint's name.",
    )
