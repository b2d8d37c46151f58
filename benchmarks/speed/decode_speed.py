"""Compare the decode speed of edgesdk's ONNX engine with onnxruntime-genai on its own int4 build.

    python -m benchmarks.speed.decode_speed --gguf MODEL.gguf --bundle BUNDLE

BUNDLE is `edgesdk export MODEL.gguf --bits 4`'s. The first run installs onnxruntime-genai in an
environment of its own (its builder's needs conflict with other extras) and builds its model there.
By default that build has a 4-bit head and no zero-points, where edgesdk spends bytes for quality;
`--recipe same-formats` builds the peer in edgesdk's formats, so that only graph and loop differ.
"""

from __future__ import annotations

from pathlib import Path

import click
from platformdirs import user_cache_path

from benchmarks.export.genai_build import RECIPES, genai_int4, genai_python
from benchmarks.speed.side_by_side import Contestant, interleave, report, worker_command
from edgesdk.bundle.opening import open_bundle
from edgesdk.text.tokenizer import BundleTokenizer

PROMPT = "Once upon a time, in a small village by the sea, there lived a lighthouse keeper who"


@click.command()
@click.option("--gguf", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--work", type=click.Path(path_type=Path), help="Where the peer is kept.")
@click.option("--recipe", type=click.Choice(list(RECIPES)), default="default", show_default=True)
@click.option("--tokens", default=128, show_default=True, help="Decoded in each run.")
@click.option("--pairs", default=7, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(
    gguf: Path,
    bundle: Path,
    work: Path | None,
    recipe: str,
    tokens: int,
    pairs: int,
    threads: int,
) -> None:
    """Compare decode speeds."""
    work = work or user_cache_path("edgesdk") / "benchmarks"
    work.mkdir(parents=True, exist_ok=True)
    python = genai_python(work)
    peer_folder = genai_int4(python, gguf, work, recipe)
    prompt = BundleTokenizer.open(open_bundle(bundle)).encode(PROMPT)
    tail = (threads, tokens, *prompt)
    ours = Contestant("edgesdk", worker_command("onnx", bundle, *tail))
    peer = Contestant(
        "onnxruntime-genai", worker_command("genai", peer_folder, *tail, python=python)
    )
    pairs_of_speeds = interleave(ours.run, peer.run, pairs)
    ours.close()
    peer.close()
    report(
        "decode_speed",
        "edgesdk",
        "onnxruntime-genai",
        pairs_of_speeds,
        model=gguf.stem,
        peer_recipe=recipe,
        tokens=tokens,
        threads=threads,
    )


if __name__ == "__main__":
    main()
