"""llama.cpp by its plain C API, one context and one sequence: the reference for the GGUF engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgesdk.engines.gguf.library import load_library


class BareLlama:
    """Computes everything anew in each call."""

    def __init__(self, path: Path, *, cells: int = 1024, threads: int = 1) -> None:
        from llama_cpp import llama_cpp as api

        self._api = api
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = load_library().extra_buffers
        self.model = api.llama_model_load_from_file(str(path).encode(), params)
        self.vocab = api.llama_model_get_vocab(self.model)
        self.vocab_size = api.llama_vocab_n_tokens(self.vocab)
        options = api.llama_context_default_params()
        options.n_ctx = options.n_batch = cells
        options.n_outputs_max_per_seq = 0
        options.n_threads = options.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, options)
        self._batch = api.llama_batch_init(cells, 0, 1)

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        ids = (self._api.llama_token * (len(data) + 8))()
        count = self._api.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, True)
        return list(ids[:count])

    def logits(self, ids: list[int]) -> npt.NDArray[np.float32]:
        """Logits of every position, float32 [len(ids), vocab]."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self.context), True)
        batch = self._batch
        batch.n_tokens = len(ids)
        for position, token in enumerate(ids):
            batch.token[position] = token
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = 1
        assert self._api.llama_decode(self.context, batch) == 0
        rows = self._api.llama_get_logits(self.context)
        return np.ctypeslib.as_array(rows, (len(ids), self.vocab_size)).copy()

    def close(self) -> None:
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self.context)
        self._api.llama_model_free(self.model)
