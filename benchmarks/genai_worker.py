"""Decode speed of onnxruntime-genai's own loop. Runs in its environment: genai_build.py.

python genai_worker.py MODEL_FOLDER THREADS TOKENS TOKEN_IDS...
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import onnxruntime_genai as og
from turns import serve


def main(folder: Path, threads: int, count: int, prompt: list[int]) -> None:
    config_path = folder / "genai_config.json"
    config = json.loads(config_path.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    config_path.write_text(json.dumps(config, indent=4))
    model = og.Model(str(folder))

    def run() -> float:
        params = og.GeneratorParams(model)
        params.set_search_options(do_sample=False, max_length=len(prompt) + count + 1)
        generator = og.Generator(model, params)
        generator.append_tokens(prompt)
        generator.generate_next_token()
        started = time.perf_counter()
        done = 0
        while done < count and not generator.is_done():
            generator.generate_next_token()
            done += 1
        seconds = time.perf_counter() - started
        if done < count:
            raise SystemExit(f"the model ended after {done} tokens; choose another prompt")
        return done / seconds

    serve(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), [int(n) for n in sys.argv[4:]])
