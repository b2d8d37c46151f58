"""Run one contestant of a speed benchmark in a process of its own.

    python -m benchmarks.speed.workers genai MODEL_FOLDER THREADS TOKENS TOKEN_IDS...
    python -m benchmarks.speed.workers llama MODEL.gguf THREADS TOKENS PROMPT_TOKENS PROMPT
    python -m benchmarks.speed.workers onnx BUNDLE THREADS TOKENS TOKEN_IDS...
    python -m benchmarks.speed.workers restore MODEL THREADS SAVED_CHAT QUESTION
    python -m benchmarks.speed.workers stream MODEL.gguf THREADS TOKENS PROMPT

`genai` runs in the environment of `benchmarks.export.genai_build`, where edgesdk is not installed;
so each worker imports what it needs itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter

from benchmarks.speed.side_by_side import serve


def genai(folder: str, threads: str, tokens: str, *prompt: str) -> None:
    """Decode speed of onnxruntime-genai's own loop."""
    import onnxruntime_genai as og

    count, ids = int(tokens), [int(token) for token in prompt]
    config_path = Path(folder) / "genai_config.json"
    config = json.loads(config_path.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = int(threads)
    config_path.write_text(json.dumps(config, indent=4))
    model = og.Model(folder)

    def run() -> float:
        params = og.GeneratorParams(model)
        params.set_search_options(do_sample=False, max_length=len(ids) + count + 1)
        generator = og.Generator(model, params)
        generator.append_tokens(ids)
        generator.generate_next_token()
        started = perf_counter()
        done = 0
        while done < count and not generator.is_done():
            generator.generate_next_token()
            done += 1
        return _speed(done, count, perf_counter() - started)

    serve(run)


def llama(path: str, threads: str, tokens: str, prompt_tokens: str, prompt: str) -> None:
    """Speed of a bare greedy loop over llama-cpp-python's low-level API: decode and argmax.

    The prompt's ids are repeated up to PROMPT_TOKENS, as many as the chat template makes of it.
    """
    import numpy as np
    from llama_cpp import llama_cpp as api

    from edgesdk.engines.gguf.library import load_library

    count, length = int(tokens), int(prompt_tokens)
    silent = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(silent, None)
    api.llama_backend_init()
    model_params = api.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model_params.use_extra_bufts = load_library().extra_buffers
    model = api.llama_model_load_from_file(path.encode(), model_params)
    params = api.llama_context_default_params()
    params.n_ctx = max(1024, length + count)
    params.n_threads = params.n_threads_batch = int(threads)
    context = api.llama_init_from_model(model, params)
    vocabulary = api.llama_model_get_vocab(model)
    size = api.llama_vocab_n_tokens(vocabulary)

    data = prompt.encode()
    ids = (api.llama_token * (len(data) + 8))()
    found = api.llama_tokenize(vocabulary, data, len(data), ids, len(ids), True, True)
    repeated = np.resize(np.array(ids[:found], np.int32), length)
    first = (api.llama_token * length)(*repeated.tolist())
    one = (api.llama_token * 1)()

    def choose() -> int:
        row = api.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(row, (size,)).argmax())

    def run() -> float:
        started = perf_counter()
        api.llama_memory_clear(api.llama_get_memory(context), True)
        api.llama_decode(context, api.llama_batch_get_one(first, length))
        one[0] = choose()
        for _ in range(count - 1):
            api.llama_decode(context, api.llama_batch_get_one(one, 1))
            one[0] = choose()
        return count / (perf_counter() - started)

    serve(run)


def onnx(bundle: str, threads: str, tokens: str, *prompt: str) -> None:
    """Decode speed of edgesdk's ONNX engine."""
    from edgesdk.bundle.opening import open_bundle
    from edgesdk.engines.registry import open_engine

    count, ids = int(tokens), [int(token) for token in prompt]
    engine = open_engine(open_bundle(Path(bundle)), threads=int(threads))

    def run() -> float:
        state = engine.new_state()
        token = int(state.extend(ids)[0].argmax())
        started = perf_counter()
        for _ in range(count):
            token = int(state.extend([token])[0].argmax())
        seconds = perf_counter() - started
        state.close()
        return count / seconds

    serve(run)


def restore(name: str, threads: str, saved: str, question: str) -> None:
    """Seconds to the first token of a saved chat's next turn, where the chat was never seen."""
    from edgesdk.loading import load

    with load(name, threads=int(threads), context=4096) as model:

        def run() -> float:
            started = perf_counter()
            with model.restore(saved) as chat:
                restored = perf_counter() - started
                first = chat.respond(question, max_tokens=1).receipt.time_to_first_token
            assert first is not None, "an answer has a first token"
            return restored + first

        serve(run)


def stream(path: str, threads: str, tokens: str, prompt: str) -> None:
    """Speed of `model.stream` on a GGUF, from the request to the last piece."""
    from edgesdk.loading import load

    count = int(tokens)
    with load(path, threads=int(threads)) as model:

        def run() -> float:
            started = perf_counter()
            answer = model.stream(prompt, max_tokens=count)
            for _ in answer:
                pass
            seconds = perf_counter() - started
            return _speed(answer.reply.receipt.output_tokens, count, seconds)

        serve(run)


def _speed(done: int, wanted: int, seconds: float) -> float:
    if done < wanted:
        raise SystemExit(f"The model ended after {done} tokens; choose another prompt.")
    return done / seconds


WORKERS = {"genai": genai, "llama": llama, "onnx": onnx, "restore": restore, "stream": stream}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in WORKERS:
        raise SystemExit(__doc__)
    WORKERS[sys.argv[1]](*sys.argv[2:])
