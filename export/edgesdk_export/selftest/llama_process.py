"""Run a GGUF in llama.cpp, in a process of its own: see `edgesdk_export.selftest.worker`."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesdk_export.selftest.onnx_decoder import Float32, Ids
from edgesdk_export.selftest.worker import call_in_process

_FLOAT32 = 0  # GGML_TYPE_F32 in ggml.h
_FLASH_ATTENTION_OFF = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED in llama.h
_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR in ggml.h
_HINT = "This is a fault of the export; please report it with the checkpoint's name."


def llama_logits(model_path: Path, ids: Ids) -> Float32:
    """Logits float32 [n, vocab] of tokens int64 [n], in one batch with a KV cache of float32.

    Raises:
        ExportError: llama.cpp cannot open or run the file.
    """
    doing = f"llama.cpp cannot run {model_path.name}, which was just written: it"
    return call_in_process(_logits, model_path, ids, doing=doing, hint=_HINT)


def llama_ids(model_path: Path, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as llama.cpp makes them: control tokens that stand in a text are
    theirs, and no BOS is added.

    Raises:
        ExportError: llama.cpp cannot open the file, or tokenize a text.
    """
    doing = f"llama.cpp cannot read the vocabulary of {model_path.name}, just written: it"
    return call_in_process(_ids, model_path, list(texts), doing=doing, hint=_HINT)


def _logits(model_path: Path, ids: Ids) -> Float32:
    with _opened(model_path, vocab_only=False) as (api, model):
        count, vocab = len(ids), api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        options = api.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = count
        if hasattr(options, "n_outputs_max_per_seq"):
            options.n_outputs_max_per_seq = 0
        options.type_k = options.type_v = _FLOAT32
        options.flash_attn_type = _FLASH_ATTENTION_OFF
        context = api.llama_init_from_model(model, options)
        if not context:
            raise RuntimeError("it makes no context")
        batch = api.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for position, token in enumerate(ids):
            batch.token[position], batch.pos[position] = int(token), position
            batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
            batch.logits[position] = 1
        status = api.llama_decode(context, batch)
        if status:
            raise RuntimeError(f"llama_decode gives {status}")
        rows = np.ctypeslib.as_array(api.llama_get_logits(context), (count, vocab))
        return np.array(rows, np.float32)


def _ids(model_path: Path, texts: list[str]) -> list[list[int]]:
    with _opened(model_path, vocab_only=True) as (api, model):
        encode = _encoder(api, api.llama_model_get_vocab(model))
        return [encode(text) for text in texts]


def _encoder(api: Any, vocab: Any) -> Callable[[str], list[int]]:
    def encode(text: str) -> list[int]:
        raw = text.encode()
        room = len(raw) + 16
        tokens = (api.llama_token * room)()
        count = api.llama_tokenize(vocab, raw, len(raw), tokens, room, False, True)
        if count < 0:
            raise RuntimeError(f"{text!r} takes {-count} tokens")
        return list(tokens[:count])

    return encode


@contextlib.contextmanager
def _opened(model_path: Path, *, vocab_only: bool) -> Iterator[tuple[Any, Any]]:
    """llama.cpp's functions, and the model. Only errors go to stderr."""
    # llama-cpp-python prints llama.cpp's log, warnings as errors.
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
    from llama_cpp import llama_cpp as api

    log = api.llama_log_callback(_print_errors)
    api.llama_log_set(log, ctypes.c_void_p())
    api.llama_backend_init()
    params = api.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = False
    params.vocab_only = vocab_only
    model = api.llama_model_load_from_file(str(model_path).encode(), params)
    if not model:
        raise SystemExit(1)  # it said why
    # Nothing is freed: the process ends after this.
    yield api, model


def _print_errors(level: int, text: bytes, data: object) -> None:
    if level == _ERROR_LEVEL:
        sys.stderr.write(text.decode("utf-8", "replace"))
