"""Greedy decode speed of edgesdk's ONNX engine.

python onnx_worker.py BUNDLE THREADS TOKENS TOKEN_IDS...
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from turns import serve

from edgesdk.bundle.opening import open_bundle
from edgesdk.engines.registry import open_engine


def main(folder: Path, threads: int, count: int, prompt: list[int]) -> None:
    engine = open_engine(open_bundle(folder), threads=threads)

    def run() -> float:
        state = engine.new_state()
        token = int(state.extend(prompt)[0].argmax())
        started = time.perf_counter()
        for _ in range(count):
            token = int(state.extend([token])[0].argmax())
        seconds = time.perf_counter() - started
        state.close()
        return count / seconds

    serve(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), [int(n) for n in sys.argv[4:]])
