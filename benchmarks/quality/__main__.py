"""Measure what quantizing costs, beside onnxruntime-genai's builder and llama.cpp's quantizer.

    python -m benchmarks.quality WORK MODEL.gguf --calibration A.txt --text B.txt
    python -m benchmarks.quality WORK MODEL.gguf ... --grid as-is      the weights as they are
    python -m benchmarks.quality WORK MODEL.gguf ... --grid noisy      with errors that stay
    python -m benchmarks.quality WORK MODEL.gguf ... --only genai      rows whose names match

Every tool starts from one F32 GGUF that is written to WORK. Weights that are free to have were
dequantized from a 4-bit grid once, and a format with that grid looks perfect on them; so `off-grid`
(the default) first moves seeded log-normal scales (sigma 0.1) between neighbouring weights, which
leaves the function as it was: that is checked. But a block whose columns were scaled by a tenth is
still near its grid, and channel scales that even out columns bring it nearer. `noisy` therefore
adds Gaussian errors to all matrices, a tenth of a row's size (a 20th in embedding and head): no
scale undoes these, and the model with them is what all are measured against.

All files are measured on the same tokens of B against that GGUF's logits in fp32. ONNX models are
run by onnxruntime's kernels, which round activations to 8 bits; GGUFs are dequantized and computed
in fp32, which flatters them slightly.

Bits are of what the files hold, scales and embeddings and all, over the parameters. `best` is given
the bits of llama.cpp's Q4_K_M. What is made and measured stays in WORK; a second run goes on.
"""

from __future__ import annotations

import functools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from edgesdk_export.calibration.channel_scales import off_grid
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.gguf.file_types import file_type_named
from edgesdk_export.gguf.tokenizer_metadata import vocabulary_metadata
from edgesdk_export.gguf.writer import write_gguf
from edgesdk_export.quality.evaluation_text import Windows, cut_windows, text_from_file
from edgesdk_export.quality.layerwise_models import LayerwiseCheckpoint, LayerwiseOnnxModel
from edgesdk_export.recipes import load_recipe
from edgesdk_export.recipes.sections import CalibrationRecipe
from edgesdk_export.selftest.weight_noise import WeightErrors, with_weight_noise
from edgesdk_export.tokenizers import read_text

from benchmarks.export.genai_build import genai_python
from benchmarks.quality.measure import Logits, Reference, in_one_session, stored_bits, streamed
from benchmarks.quality.peers import GENAI_RECIPES, LLAMA_TYPES, genai_built, llama_quantized
from benchmarks.quality.plot import draw
from edgesdk.bundle.spec import DecoderSpec

PEER = "llama.cpp Q4_K_M"
# Off-grid weights compute the same up to float32's rounding: far below what any format costs.
_SAME = 1e-6


@dataclass(frozen=True)
class Candidate:
    """A row of the table: how its file is made, and how that is run."""

    name: str
    make: Callable[[], Path]
    run: Callable[[Path], Logits]


@dataclass(frozen=True)
class Maker:
    """What all candidates are made from and with."""

    work: Path
    source: Path
    spec: DecoderSpec
    calibration: Path
    calibration_tokens: int

    def ours(self, name: str, recipe: str, *options: str, budget: bool = False) -> Candidate:
        fmt = "gguf" if "gguf" in options else "onnx"

        def make() -> Path:
            folder = self.work / name.replace(" ", "-")
            bits = ("--bits", f"{self._peer_bits():.2f}") if budget else ()
            if not folder.exists():
                command = [sys.executable, "-m", "edgesdk", "export", self.source]
                command += ["--output", folder, "--recipe", self._recipe(recipe), *options, *bits]
                command += ["--quality-tokens", "0", "--name", "quality"]
                if recipe != "fast":
                    command += ["--calibration", self.calibration]
                subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)
            return folder / f"model.{fmt}"

        return Candidate(name, make, _gguf if fmt == "gguf" else self._written)

    def llama(self, name: str) -> Candidate:
        target = self.work / f"{name.replace(' ', '-')}.gguf"
        make = functools.partial(llama_quantized, self.source, target, LLAMA_TYPES[name])
        return Candidate(name, make, _gguf)

    def genai(self, name: str) -> Candidate:
        def make() -> Path:
            python = genai_python(self.work.parent)
            return genai_built(python, self.source, self.work, GENAI_RECIPES[name])

        return Candidate(name, make, in_one_session)

    def _written(self, model: Path) -> Logits:
        return streamed(LayerwiseOnnxModel(self.spec, model))

    def _recipe(self, name: str) -> Path:
        """The recipe that comes with edgesdk, with another number of calibration tokens."""
        recipe = load_recipe(name)
        if recipe.calibration is not None:
            asked = CalibrationRecipe(tokens=self.calibration_tokens)
            recipe = recipe.model_copy(update={"calibration": asked})
        path = self.work / f"{name}.toml"
        path.write_text(recipe.to_toml())
        return path

    def _peer_bits(self) -> float:
        """Rounded down: at equal or fewer bits."""
        bits = stored_bits(self.llama(PEER).make(), self.spec.parameters)
        return math.floor(bits * 100) / 100


def candidates(maker: Maker) -> Iterator[Candidate]:
    yield from (maker.llama(name) for name in LLAMA_TYPES)
    for recipe in ("fast", "balanced", "best"):
        yield maker.ours(f"onnx int4 {recipe}", recipe, "--bits", "4")
    yield maker.ours("onnx best at equal bits", "best", budget=True)
    yield maker.ours("onnx balanced at equal bits", "balanced", budget=True)
    yield maker.ours("gguf q4_k_m", "fast", "--format", "gguf", "--type", "q4_k_m")
    yield maker.ours("gguf q4_k_m calibrated", "balanced", "--format", "gguf", "--type", "q4_k_m")
    yield from (maker.genai(name) for name in GENAI_RECIPES)


@click.command()
@click.argument("work", type=click.Path(path_type=Path, file_okay=False))
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--calibration", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--text", "held_out", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--grid", type=click.Choice(["off-grid", "as-is", "noisy"]), default="off-grid")
@click.option("--tokens", default=4096, show_default=True, help="Measured on so many.")
@click.option("--calibration-tokens", default=16384, show_default=True)
@click.option("--only", default="", help="A regular expression: make only rows that match.")
@click.option("--seed", default=0, show_default=True)
def main(
    work: Path,
    model: Path,
    calibration: Path,
    held_out: Path,
    grid: str,
    tokens: int,
    calibration_tokens: int,
    only: str,
    seed: int,
) -> None:
    folder = work / f"{model.stem}-{grid}"
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "f32.gguf"
    if not source.exists():
        _write_source(model, source, grid, seed)
    checkpoint = open_checkpoint(source)
    decoder, side = read_decoder(checkpoint), read_text(checkpoint)
    windows = cut_windows(
        text_from_file(held_out),
        side.tokenizer_json,
        tokens=tokens,
        bos=side.entry.bos_token_id if side.entry.add_bos else None,
        context=decoder.spec.context_length,
    )
    reference = Reference.of(LayerwiseCheckpoint(decoder), windows.ids)
    if grid == "off-grid":
        _check_same(reference, model, folder / "same")
    maker = Maker(folder, source, decoder.spec, calibration.resolve(), calibration_tokens)
    for candidate in candidates(maker):
        kept = folder / f"{candidate.name.replace(' ', '-')}.{windows.ids.size}.json"
        if not kept.exists() and re.search(only, candidate.name):
            row = _measure(candidate, reference, decoder.spec, windows)
            kept.write_text(json.dumps(row))
            print(row, file=sys.stderr, flush=True)
    rows = [json.loads(path.read_text()) for path in folder.glob(f"*.{windows.ids.size}.json")]
    rows.sort(key=lambda row: -row["bits"])
    _print(f"{model.stem}, {grid}, {windows.predictions:,} predictions of {held_out.name}", rows)
    draw(rows, f"{model.stem}, {grid}", folder / "quality.png")


def _write_source(model: Path, target: Path, grid: str, seed: int) -> None:
    checkpoint = open_checkpoint(model)
    decoder = read_decoder(checkpoint)
    vocabulary = vocabulary_metadata(checkpoint, read_text(checkpoint), decoder.spec.vocab_size)
    moved = decoder
    if grid == "off-grid":
        moved = off_grid(decoder, seed=seed)
    elif grid == "noisy":
        moved = with_weight_noise(decoder, WeightErrors(linear=0.1, head=0.05))
    beside = target.with_suffix(".part")
    write_gguf(moved, beside, file_type_named("f32"), name=model.stem, vocabulary=vocabulary)
    beside.rename(target)


def _check_same(reference: Reference, model: Path, done: Path) -> None:
    """Moving weights off their grid must not change what they compute."""
    if done.exists():
        return
    original = LayerwiseCheckpoint(read_decoder(open_checkpoint(model)))
    found = Reference.of(reference.stack, reference.ids[:1]).compare(streamed(original))
    assert found.kl.mean() < _SAME, f"off-grid weights compute something else: {found.kl.mean()}"
    done.write_text(f"KL {found.kl.mean():.2g}, top-1 {found.same_top1.mean():.4f}\n")


def _measure(
    candidate: Candidate, reference: Reference, spec: DecoderSpec, windows: Windows
) -> dict[str, object]:
    path = candidate.make()
    found = reference.compare(candidate.run(path))
    return {
        "name": candidate.name,
        "bits": round(stored_bits(path, spec.parameters), 3),
        "kl_mean": float(found.kl.mean()),
        # Positions of one text are not independent; this is a lower bound.
        "kl_error": float(found.kl.std(ddof=1) / np.sqrt(len(found.kl))),
        "kl_p99": float(np.quantile(found.kl, 0.99)),
        "top1": float(found.same_top1.mean()),
        "predictions": windows.predictions,
    }


def _gguf(path: Path) -> Logits:
    return streamed(LayerwiseCheckpoint(read_decoder(open_checkpoint(path))))


def _print(title: str, rows: list[dict[str, float]]) -> None:
    print(f"\n{title}\n")
    print("| | bits a weight | KL mean | KL p99 | top-1 |\n|---|---|---|---|---|")
    for row in rows:
        kl = f"{row['kl_mean']:.4f} ± {row['kl_error']:.4f}"
        bits, last, same = row["bits"], row["kl_p99"], row["top1"]
        print(f"| {row['name']} | {bits:.3f} | {kl} | {last:.3f} | {same:.4f} |")


if __name__ == "__main__":
    main()
