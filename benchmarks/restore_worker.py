"""Seconds to the first token of a saved chat's next turn, in a process that never saw the chat.

python restore_worker.py MODEL THREADS SAVED_CHAT QUESTION
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

from turns import serve

from edgesdk.loading import load


def main(name: str, threads: int, saved: Path, question: str) -> None:
    with load(name, threads=threads, context=4096) as model:

        def run() -> float:
            started = perf_counter()
            with model.restore(saved) as chat:
                restored = perf_counter() - started
                first = chat.respond(question, max_tokens=1).receipt.time_to_first_token
            assert first is not None, "an answer has a first token"
            return restored + first

        serve(run)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
