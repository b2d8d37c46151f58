"""Measure what `model.stream` costs over llama.cpp itself: the same GGUF, greedy, in turns.

    python -m benchmarks.speed.engine_overhead --gguf MODEL.gguf

The peer is a bare loop over llama-cpp-python's low-level API: decode one token, take the argmax.
Both are timed from the request to the last token, over a prompt of the same length.
"""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.speed.side_by_side import Contestant, interleave, report, worker_command
from edgesdk.loading import load

PROMPT = "Write a long story about a lighthouse keeper and the sea."


@click.command()
@click.option("--gguf", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--tokens", default=128, show_default=True, help="Decoded in each run.")
@click.option("--pairs", default=7, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(gguf: Path, tokens: int, pairs: int, threads: int) -> None:
    """Compare decode speeds."""
    with load(gguf) as model:
        prompt_tokens = model.count([{"role": "user", "content": PROMPT}])
    same = (gguf, threads, tokens)
    ours = Contestant("model.stream", worker_command("stream", *same, PROMPT))
    peer = Contestant("bare llama.cpp", worker_command("llama", *same, prompt_tokens, PROMPT))
    speeds = interleave(ours.run, peer.run, pairs)
    ours.close()
    peer.close()
    report(
        "engine_overhead",
        "model.stream",
        "bare llama.cpp",
        speeds,
        model=gguf.stem,
        tokens=tokens,
        threads=threads,
    )


if __name__ == "__main__":
    main()
