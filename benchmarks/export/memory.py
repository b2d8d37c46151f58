"""Measure the memory and time of an export: random weights in the real Qwen2.5-7B layout.

    python -m benchmarks.export.memory WORK                       all 28 layers: 15 GB of disk
    python -m benchmarks.export.memory WORK --layers 2            the same embedding, fewer layers
    python -m benchmarks.export.memory WORK --calibrated --quality-tokens 512
    python -m benchmarks.export.memory WORK --peer 0.5B --pairs 5 onnxruntime-genai's builder beside

The checkpoint is written to WORK (bfloat16, sharded, seeded) and kept there; bundles are removed.
Every export is a process of its own; `watched_process.py` says what counts as its memory. Rates are
of checkpoint bytes, with hashing and flushing to the disk in the time. The peer's builder and our
exporter take the same smaller checkpoint, as the builder holds a model whole in memory: what is
compared is bytes and nanoseconds per parameter.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import click

from benchmarks.export.genai_build import genai_python
from benchmarks.export.random_qwen import LAYOUTS, Layout, parameters_of, write_checkpoint
from benchmarks.export.watched_process import Watched, watch

# Name -> what edgesdk export is asked for.
EXPORTS = {
    "onnx int4": ("--format", "onnx", "--bits", "4"),
    "gguf q4_k_m": ("--format", "gguf", "--type", "q4_k_m"),
}
CALIBRATED = {
    "onnx int4 balanced": ("--format", "onnx", "--bits", "4", "--recipe", "balanced"),
    "gguf q4_k_m balanced": ("--format", "gguf", "--type", "q4_k_m", "--recipe", "balanced"),
    "onnx int4 best": ("--format", "onnx", "--bits", "4", "--recipe", "best"),
}


@click.command()
@click.argument("work", type=click.Path(path_type=Path, file_okay=False))
@click.option("--size", type=click.Choice(list(LAYOUTS)), default="7B", show_default=True)
@click.option("--layers", type=click.IntRange(min=1), help="Fewer layers than the model has.")
@click.option("--calibrated", is_flag=True, help="Recipes that calibrate, too.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="What those read. Without it a model of few layers writes its own text, which takes long.",
)
@click.option("--quality-tokens", default=0, show_default=True, help="Measure quality on so many.")
@click.option("--peer", type=click.Choice(list(LAYOUTS)), help="Beside onnxruntime-genai.")
@click.option("--peer-layers", type=click.IntRange(min=1), help="Fewer layers for the peer, too.")
@click.option("--pairs", default=1, show_default=True, help="Runs beside the peer, by turns.")
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    work: Path,
    size: str,
    layers: int | None,
    calibrated: bool,
    calibration: Path | None,
    quality_tokens: int,
    peer: str | None,
    peer_layers: int | None,
    pairs: int,
    threads: int,
    seed: int,
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    wanted = dict(EXPORTS)
    if calibrated:
        text = () if calibration is None else ("--calibration", str(calibration.resolve()))
        wanted |= {what: (*options, *text) for what, options in CALIBRATED.items()}
    rows = []
    name, layout = _model(size, layers)
    folder = _checkpoint(work, name, layout, seed)
    for what, options in wanted.items():
        found = _export(folder, work, options, quality_tokens, threads)
        rows.append(_row(name, f"edgesdk {what}", layout, found))
    if peer is not None:
        python = genai_python(work)
        name, layout = _model(peer, peer_layers)
        folder = _checkpoint(work, name, layout, seed)
        beside: list[tuple[float, float]] = []
        for _ in range(pairs):
            ours = _export(folder, work, EXPORTS["onnx int4"], 0, threads)
            rows.append(_row(name, "edgesdk onnx int4", layout, ours))
            theirs = _genai(python, folder, work, threads)
            rows.append(_row(name, "onnxruntime-genai int4", layout, theirs))
            beside.append((ours.peak / theirs.peak, ours.seconds / theirs.seconds))
    _print(rows)
    if peer is not None:
        for what, ratios in zip(("peak memory", "seconds"), zip(*beside, strict=True), strict=True):
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{what} / the peer's: {statistics.median(ratios):.2f} ({spread})")
    print(json.dumps({"threads": threads, "quality_tokens": quality_tokens, "exports": rows}))


def _model(size: str, layers: int | None) -> tuple[str, Layout]:
    whole = LAYOUTS[size]
    name = size if layers is None else f"{size}-{layers}-layers"
    return name, dataclasses.replace(whole, layers=layers or whole.layers)


def _checkpoint(work: Path, name: str, layout: Layout, seed: int) -> Path:
    print(f"writing {work / name} ...", file=sys.stderr)
    write_checkpoint(layout, work / name, seed=seed)
    return work / name


def _export(
    folder: Path, work: Path, options: tuple[str, ...], tokens: int, threads: int
) -> Watched:
    # A folder of its own: nothing that an earlier run left is gone on with.
    with tempfile.TemporaryDirectory(dir=work) as place:
        command = [sys.executable, "-m", "edgesdk", "export", folder]
        command += ["--output", Path(place) / "bundle", *options, "--quality-tokens", tokens]
        return watch(command, {"OMP_NUM_THREADS": str(threads)})


def _genai(python: Path, folder: Path, work: Path, threads: int) -> Watched:
    with tempfile.TemporaryDirectory(dir=work) as place:
        command = [python, "-m", "onnxruntime_genai.models.builder", "-m", folder]
        command += ["-o", Path(place) / "model", "-c", Path(place) / "cache"]
        command += ["-p", "int4", "-e", "cpu"]
        return watch(command, {"OMP_NUM_THREADS": str(threads)})


def _row(model: str, tool: str, layout: Layout, found: Watched) -> dict[str, object]:
    weights = parameters_of(layout)
    # At once, too: the whole takes long, and may be cut.
    print(f"{model} {tool}: {found}", file=sys.stderr)
    return {
        "model": model,
        "tool": tool,
        "parameters": weights,
        "peak_MB": round(found.peak / 1e6),
        "peak_resident_MB": round(found.peak_resident / 1e6),
        "seconds": round(found.seconds, 1),
        "checkpoint_MB_per_s": round(2 * weights / found.seconds / 1e6, 1),
        "peak_bytes_per_parameter": round(found.peak / weights, 3),
        "ns_per_parameter": round(found.seconds / weights * 1e9, 1),
        "samples": found.samples,
    }


def _print(rows: list[dict[str, object]]) -> None:
    shown = ("model", "tool", "peak_MB", "peak_resident_MB", "seconds", "checkpoint_MB_per_s")
    shown += ("peak_bytes_per_parameter", "ns_per_parameter")
    lines = [shown, *(tuple(str(row[key]) for key in shown) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(shown))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


if __name__ == "__main__":
    main()
