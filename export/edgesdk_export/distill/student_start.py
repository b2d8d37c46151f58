"""Make the student that training begins with, and keep it for a run that goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgesdk_export.distill.recipe import StudentRecipe
from edgesdk_export.distill.samples import Sample
from edgesdk_export.distill.students import (
    TrainableModel,
    cut_layers,
    load_trainable,
    save_checkpoint,
)
from edgesdk_export.distill.vocabulary import (
    TrimmedVocabulary,
    trim_model,
    trim_vocabulary,
    write_text_side,
)
from edgesdk_export.distill.width import Width, cut_width, width_of
from edgesdk_export.progress import ExportProgress

_MARK = "student.json"


@dataclass(frozen=True)
class StudentStart:
    """A student before it learned anything.

    Attributes:
        student: its model and its text side.
        layers: the numbers of the checkpoint's layers that are left.
        vocabulary: the tokens that are left; None = all.
    """

    student: TrainableModel
    layers: tuple[int, ...]
    vocabulary: TrimmedVocabulary | None


def start_student(
    whole: TrainableModel,
    recipe: StudentRecipe,
    samples: Sequence[Sample],
    folder: Path,
    progress: ExportProgress,
) -> StudentStart:
    """Cut a student from a checkpoint; the one in `folder`, where an earlier run made it.

    Args:
        samples: all data; what is cut is measured on the first of it.
        folder: gets the student as a checkpoint.

    Raises:
        RequestError: the checkpoint cannot be cut so.
    """
    mark = folder / _MARK
    if not mark.is_file():
        layers, vocabulary = _cut(whole, recipe, samples, folder, progress)
        kept = None if vocabulary is None else vocabulary.kept
        mark.write_text(json.dumps({"layers": layers, "kept_tokens": kept}))
    said = json.loads(mark.read_text())
    student = load_trainable(folder)
    checkpoint = dataclasses.replace(student.checkpoint, name=whole.checkpoint.name)
    kept = said["kept_tokens"]
    return StudentStart(
        dataclasses.replace(student, checkpoint=checkpoint),
        tuple(said["layers"]),
        None if kept is None else TrimmedVocabulary(tuple(kept), student.text.tokenizer_json),
    )


def _cut(
    whole: TrainableModel,
    recipe: StudentRecipe,
    samples: Sequence[Sample],
    folder: Path,
    progress: ExportProgress,
) -> tuple[tuple[int, ...], TrimmedVocabulary | None]:
    model, measured = whole.model, samples[: recipe.measured_sequences]
    count = int(model.config.num_hidden_layers)
    layers = tuple(range(count))
    if recipe.layers is not None and recipe.layers != count:
        progress.stage("Leaving layers out", count - recipe.layers)
        layers = cut_layers(model, recipe.layers, measured, lambda gone, _: progress.advance(gone))
    width = _width(width_of(model), recipe)
    if width != width_of(model):
        progress.stage("Leaving heads and channels out", 1)
        model = cut_width(model, width, measured)
        progress.advance(1)
    vocabulary = None
    if recipe.vocabulary == "used":
        vocabulary = trim_vocabulary(whole.text.tokenizer_json, samples)
        model = trim_model(model, vocabulary)
    save_checkpoint(dataclasses.replace(whole, model=model), folder)
    if vocabulary is not None:
        write_text_side(folder, vocabulary)
    return layers, vocabulary


def _width(whole: Width, recipe: StudentRecipe) -> Width:
    kv_heads = recipe.kv_heads or whole.kv_heads
    return Width(
        heads=recipe.heads or whole.heads // whole.kv_heads * kv_heads,
        kv_heads=kv_heads,
        channels=recipe.channels or whole.channels,
    )
