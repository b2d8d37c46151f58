"""A bare greedy loop over llama-cpp-python's low-level API: nothing but decode and argmax.

    python llama_worker.py MODEL.gguf THREADS TOKENS PROMPT_TOKENS PROMPT

The prompt's ids are repeated up to PROMPT_TOKENS, as many as the chat template makes of it.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from llama_cpp import llama_cpp as api
from turns import serve

from edgesdk.engines.gguf.library import load_library


def main(path: str, threads: int, count: int, prompt_tokens: int, prompt: str) -> None:
    api.llama_log_set(_silent, None)
    api.llama_backend_init()
    model_params = api.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model_params.use_extra_bufts = load_library().extra_buffers
    model = api.llama_model_load_from_file(path.encode(), model_params)
    params = api.llama_context_default_params()
    params.n_ctx = max(1024, prompt_tokens + count)
    params.n_threads = params.n_threads_batch = threads
    context = api.llama_init_from_model(model, params)
    vocabulary = api.llama_model_get_vocab(model)
    size = api.llama_vocab_n_tokens(vocabulary)

    data = prompt.encode()
    ids = (api.llama_token * (len(data) + 8))()
    found = api.llama_tokenize(vocabulary, data, len(data), ids, len(ids), True, True)
    tokens = np.resize(np.array(ids[:found], np.int32), prompt_tokens)
    first = (api.llama_token * prompt_tokens)(*tokens.tolist())
    one = (api.llama_token * 1)()

    def choose() -> int:
        row = api.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(row, (size,)).argmax())

    def run() -> float:
        started = time.perf_counter()
        api.llama_memory_clear(api.llama_get_memory(context), True)
        api.llama_decode(context, api.llama_batch_get_one(first, prompt_tokens))
        one[0] = choose()
        for _ in range(count - 1):
            api.llama_decode(context, api.llama_batch_get_one(one, 1))
            one[0] = choose()
        return count / (time.perf_counter() - started)

    serve(run)


@api.llama_log_callback
def _silent(level: int, text: bytes, data: object) -> None:
    pass


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
