"""Runs an encoder, or a decoder for its hidden states, in llama.cpp's embedding mode."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import EngineInfo, HiddenStates, LoadSettings, Placement
from edgesdk.engines.devices import DeviceRecord
from edgesdk.engines.encoder_engine import Scores, TokenRow, check_rows
from edgesdk.engines.gguf.header_checks import check_header, read_header
from edgesdk.engines.gguf.library import LlamaLibrary, load_library
from edgesdk.engines.gguf.native_weights import NativeWeights
from edgesdk.engines.gguf.tokenizer import tokenized
from edgesdk.errors import EngineError

# llama.cpp reads a text of an encoder in one batch, and has room for it from the start.
_MAX_TOKENS = 2048


class GgufEncoder:
    """Implements `edgesdk.engines.encoder_engine.EncoderEngine`; it scores nothing. One text is
    computed at a time."""

    def __init__(
        self, library: LlamaLibrary, weights: NativeWeights, context: Any, info: EngineInfo
    ) -> None:
        self._api = library.api
        self._library = library
        self._weights: NativeWeights | None = weights
        self._context = context
        self._columns = int(library.api.llama_model_n_embd(weights.pointer))
        self._lock = threading.Lock()
        self.info: Final = info

    def hidden_states(self, rows: Sequence[TokenRow]) -> list[HiddenStates]:
        check_rows(rows, self.info)
        return [self._read(row.ids) for row in rows]

    def scores(self, rows: Sequence[TokenRow]) -> Scores:
        raise EngineError(
            "A GGUF model scores no pairs of texts here.", hint="Export the reranker to ONNX."
        )

    def row(self, text: str | tuple[str, str], *, limit: int | None = None) -> TokenRow:
        """A text's row by the file's own tokenizer; see `embedding.token_rows.RowTokenizer`."""
        assert isinstance(text, str), "a GGUF model reads no pairs"
        vocab = self._api.llama_model_get_vocab(self._open_weights().pointer)
        # Special tokens around the text, and none for what it says.
        found = tuple(tokenized(self._api, vocab, text, add_special=True, parse_special=False))
        if limit is None or len(found) <= limit:
            return TokenRow(found)
        api = self._api
        ends = api.llama_vocab_get_add_sep(vocab) or api.llama_vocab_get_add_eos(vocab)
        return TokenRow((*found[: limit - 1], found[-1]) if ends else found[:limit])

    def close(self) -> None:
        with self._lock:
            weights, self._weights = self._weights, None
            if weights is not None and not weights.fork_guard.crossed:
                self._api.llama_free(self._context)

    def _open_weights(self) -> NativeWeights:
        if self._weights is None:
            raise EngineError("This engine is closed.", hint="Open the model again.")
        self._weights.fork_guard.check()
        return self._weights

    def _read(self, ids: Sequence[int]) -> HiddenStates:
        api = self._api
        with self._lock:
            self._open_weights()
            memory = api.llama_get_memory(self._context)
            if memory:
                api.llama_memory_clear(memory, True)
            tokens = (api.llama_token * len(ids))(*ids)
            status = api.llama_decode(self._context, api.llama_batch_get_one(tokens, len(ids)))
            if status != 0:
                said = self._library.take_errors() or f"status {status}"
                raise EngineError(f"llama.cpp failed to read a text: {said}.")
            found = api.llama_get_embeddings(self._context)
            shape = (len(ids), self._columns)
            address = ctypes.addressof(found.contents)
            flat = (ctypes.c_float * (shape[0] * shape[1])).from_address(address)
            states: HiddenStates = np.array(flat, np.float32).reshape(shape)
            return states


def open_encoder(
    source: Bundle | Path, *, record: DeviceRecord, settings: LoadSettings
) -> GgufEncoder:
    """Load a GGUF bundle's encoder, or a bare `.gguf` file for its hidden states.

    Raises:
        MissingExtra: llama-cpp-python is not installed.
        EngineError: llama.cpp cannot load the file.
    """
    started = time.perf_counter()
    library = load_library()
    api = library.api
    path = source.role_file("encoder") if isinstance(source, Bundle) else source
    check_header(read_header(path), path)
    model_params = api.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model_params.use_extra_bufts = library.extra_buffers
    library.listen()
    model = api.llama_model_load_from_file(os.fsencode(path), model_params)
    if not model:
        raise _failed(library, path)
    weights = NativeWeights(library, model)
    trained = api.llama_model_n_ctx_train(model)
    length = min(trained, _MAX_TOKENS, settings.context or trained)
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = length
    params.n_seq_max = 1
    params.embeddings = True
    # Pooling is done above this engine, in one way for all.
    params.pooling_type = api.LLAMA_POOLING_TYPE_NONE
    params.n_threads = params.n_threads_batch = settings.threads
    params.offload_kqv = params.op_offload = False
    context = api.llama_init_from_model(model, params)
    if not context:
        raise _failed(library, path)
    info = EngineInfo(
        name=f"llama.cpp (llama-cpp-python {library.version})",
        requested_device=settings.requested_device,
        placement=Placement(record.device, record.name, "the CPU"),
        vocab_size=api.llama_vocab_n_tokens(api.llama_model_get_vocab(model)),
        context_length=length,
        load_seconds=time.perf_counter() - started,
        threads=settings.threads,
    )
    return GgufEncoder(library, weights, context, info)


def _failed(library: LlamaLibrary, path: Path) -> EngineError:
    said = library.take_errors() or "it gives no reason"
    return EngineError(
        f"llama.cpp cannot load {path}: {said}.", hint="Download or export the model again."
    )
