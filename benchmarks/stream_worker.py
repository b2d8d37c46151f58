"""Speed of `model.stream` on a GGUF, seen from outside: from the request to the last piece.

python stream_worker.py MODEL.gguf THREADS TOKENS PROMPT
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from turns import serve

from edgesdk.loading import load


def main(path: Path, threads: int, count: int, prompt: str) -> None:
    model = load(path, threads=threads)

    def run() -> float:
        started = time.perf_counter()
        stream = model.stream(prompt, max_tokens=count)
        for _ in stream:
            pass
        seconds = time.perf_counter() - started
        done = stream.reply.receipt.output_tokens
        if done < count:
            raise SystemExit(f"the model ended after {done} tokens; choose another prompt")
        return done / seconds

    serve(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
