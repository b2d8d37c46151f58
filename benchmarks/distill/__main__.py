"""Measure what distilling gives SmolLM2-135M, cut from 30 to 20 layers.

python -m benchmarks.distill WORK MODEL.gguf prepare
python -m benchmarks.distill WORK MODEL.gguf train NAME
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from edgesdk_export.distill.measure import HeldOut, measure
from edgesdk_export.distill.recipe import DistillRecipe
from edgesdk_export.distill.run import DistillJob, distill
from edgesdk_export.distill.samples import Sample, read_samples
from edgesdk_export.distill.students import (
    cut_layers,
    load_trainable,
    prompt_encoder,
    save_checkpoint,
)
from edgesdk_export.distill.teachers import ModelTeacher
from edgesdk_export.progress import SilentProgress

from benchmarks.distill.text import write_text

LAYERS, LENGTH = 20, 192
PASSAGES, HELD_OUT_PASSAGES = 640, 60
# Sequences on which leaving out a layer is measured: each of them costs 255 forward passes.
_CUT_ON = 1
TRAINING = {
    "steps": 40,
    "batch": 6,
    "micro_batch": 2,
    "learning_rate": 6e-4,
    "warmup": 0.1,
    "teacher_tokens": 64,
    "save_every": 20,
}
# What each run changes. All read the same sequences in the same order.
RUNS: dict[str, dict[str, Any]] = {
    "cross-entropy": {"cross_entropy": 1.0},
    "off-policy": {},
    "on-policy": {"on_policy": 0.25, "sampled_tokens": 64},
}


class _Lines(SilentProgress):
    """Says how far it is in a log."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def stage(self, title: str, steps: int) -> None:
        print(f"{time.monotonic() - self._began:.0f} s: {title}", flush=True)

    def advance(self, done: int) -> None:
        print(f"{time.monotonic() - self._began:.0f} s: {done}", flush=True)


@click.group()
@click.argument("work", type=click.Path(path_type=Path, file_okay=False))
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.pass_context
def main(context: click.Context, work: Path, model: Path) -> None:
    """Prepare once, then train by name; what is done in WORK is not done again."""
    work.mkdir(parents=True, exist_ok=True)
    context.obj = (work, model)


@main.command()
@click.pass_obj
def prepare(places: tuple[Path, Path]) -> None:
    """Fetch the text, cut the student."""
    work, model = places
    training, _ = write_text(
        work, training_passages=PASSAGES, held_out_passages=HELD_OUT_PASSAGES, seed=0
    )
    whole = load_trainable(model)
    encoder = prompt_encoder(whole.text, work)
    teacher, cut = work / "teacher", work / "cut"
    if not teacher.exists():
        save_checkpoint(whole, teacher)
    if not cut.exists():
        samples = read_samples([training], encoder, end=whole.end, max_length=LENGTH)
        progress = _Lines()
        progress.stage(f"Cutting; {_count(samples)} to learn from", 0)
        left = cut_layers(
            whole.model,
            LAYERS,
            samples[:_CUT_ON],
            lambda gone, _: progress.advance(gone),
        )
        save_checkpoint(whole, cut)
        (work / "layers.json").write_text(json.dumps(left))
    _keep(work, "cut", _measured(work, cut), {})


@main.command()
@click.argument("name", type=click.Choice(list(RUNS)))
@click.pass_obj
def train(places: tuple[Path, Path], name: str) -> None:
    """Train one student and measure it."""
    work, _ = places
    student = work / name
    began = time.monotonic()
    recipe = DistillRecipe.model_validate(
        {
            "data": {"max_length": LENGTH, "held_out": 0.002},
            "training": TRAINING | RUNS[name],
        }
    )
    if not student.exists():
        job = DistillJob(
            work / "cut",
            (work / "training.jsonl",),
            student,
            recipe,
            work / "teacher",
            teacher_cache=work / "teacher.sqlite",
        )
        distill(job, _Lines())
    figures = {"seconds": time.monotonic() - began, "training": TRAINING | RUNS[name]}
    _keep(work, name, _measured(work, student), figures)


def _count(samples: list[Sample]) -> str:
    return f"{sum(sample.learned for sample in samples):,} tokens in {len(samples)} sequences"


def _measured(work: Path, checkpoint: Path) -> HeldOut:
    student, teacher = load_trainable(checkpoint), load_trainable(work / "teacher")
    encoder = prompt_encoder(student.text, work)
    samples = read_samples([work / "held-out.jsonl"], encoder, end=student.end, max_length=LENGTH)
    judge = ModelTeacher(teacher.model, "teacher")
    return measure(student.model, judge, samples)


def _keep(work: Path, name: str, found: HeldOut, figures: dict[str, Any]) -> None:
    row = {"name": name, **asdict(found), **figures}
    (work / f"{name}.json").write_text(json.dumps(row, indent=2) + "\n")
    print(row, flush=True)


if __name__ == "__main__":
    main()
