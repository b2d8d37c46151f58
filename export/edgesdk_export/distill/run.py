"""Distill: cut a student, train it on its teacher, measure it, write a checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tokenizers import Tokenizer

from edgesdk.bundle.opening import Bundle, is_bundle, open_bundle
from edgesdk.errors import RequestError
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.distill.endpoint_teacher import EndpointTeacher
from edgesdk_export.distill.hidden_states import HiddenStateMatching
from edgesdk_export.distill.measure import HeldOut, measure
from edgesdk_export.distill.quantization_aware import quantized_student, save_blocks
from edgesdk_export.distill.recipe import DistillRecipe
from edgesdk_export.distill.report import Writing, write_report
from edgesdk_export.distill.samples import Sample, read_samples, split_held_out
from edgesdk_export.distill.student_start import start_student
from edgesdk_export.distill.students import (
    TrainableModel,
    load_trainable,
    prompt_encoder,
    save_checkpoint,
)
from edgesdk_export.distill.teacher_cache import CachedTeacher
from edgesdk_export.distill.teachers import (
    EngineTeacher,
    ModelTeacher,
    Teacher,
    require_same_vocabulary,
)
from edgesdk_export.distill.training import (
    ADAPTER_FOLDER,
    START_FOLDER,
    Trained,
    Training,
    train,
)
from edgesdk_export.distill.vocabulary import TrimmedTeacher
from edgesdk_export.progress import ExportProgress, SilentProgress
from edgesdk_export.tokenizers import read_text

_JOB_FILE = "job.json"
# How many held-out sequences the page shows continuations of, and their tokens.
_SHOWN_SAMPLES, _SHOWN_TOKENS = 3, 32


@dataclass(frozen=True)
class DistillJob:
    """What is distilled.

    Attributes:
        checkpoint: what the student is, or is cut from.
        data: .txt and .jsonl files; see `read_samples`.
        destination: the folder of the trained checkpoint.
        recipe: how.
        teacher: a checkpoint, a bundle or a `.gguf`, or an endpoint that gives log-probabilities
            (see `EndpointTeacher`); None = the checkpoint itself.
        replace: whether a folder that stands at `destination` may be replaced.
        teacher_cache: a file for the teacher's answers that several runs share; None keeps them
            beside the destination until the run is done.
    """

    checkpoint: Path
    data: tuple[Path, ...]
    destination: Path
    recipe: DistillRecipe = field(default_factory=DistillRecipe)
    teacher: Path | Cloud | None = None
    replace: bool = False
    teacher_cache: Path | None = None


@dataclass(frozen=True)
class Distilled:
    """What came of it.

    Attributes:
        path: the trained checkpoint.
        before, after: on the held-out sequences, against the teacher.
        layers: the numbers of the checkpoint's layers that are left.
        losses: (step, loss) as they were logged.
    """

    path: Path
    before: HeldOut
    after: HeldOut
    layers: tuple[int, ...]
    losses: tuple[tuple[int, float], ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, of JSON's types."""
        return dataclasses.asdict(self) | {"path": str(self.path)}


def distill(job: DistillJob, progress: ExportProgress) -> Distilled:
    """Train a student; the same job after a stop or a kill goes on from the last checkpoint.

    Raises:
        RequestError: the destination is taken, or data or recipe do not fit.
        CheckpointError: student or teacher cannot be read.
        TrainingError: there is too little data, the vocabularies differ, the loss is no number, or
            memory does not hold a single sequence.
        CloudError: the endpoint that teaches does not answer; the same job goes on from there.
    """
    if job.destination.exists() and not job.replace:
        raise RequestError(
            f"{job.destination} is there already.", hint="Choose another folder, or pass --force."
        )
    processes = _processes()
    main, recipe = processes.is_main_process, job.recipe
    if not main:
        progress = SilentProgress()
    # Of several processes the main one writes, and the others wait for what it wrote.
    with processes.main_process_first():
        work = _work_folder(job, writes=main)
    progress.stage("Loading the student", 1)
    student = load_trainable(job.checkpoint)
    training, held_out = _samples(job, student)
    progress.advance(1)
    teacher = _teacher(job, student)
    folder = work / START_FOLDER
    with processes.main_process_first():
        start = start_student(student, recipe.student, [*training, *held_out], folder, progress)
    student, layers = start.student, start.layers
    matching = None
    if recipe.training.hidden_states:
        matching = HiddenStateMatching(
            student.model,
            teacher,
            layers,
            recipe.training.hidden_states,
            None if start.vocabulary is None else start.vocabulary.kept,
        )
    if start.vocabulary is not None:
        teacher = TrimmedTeacher(teacher, start.vocabulary)
        training, held_out = map(start.vocabulary.renumbered, (training, held_out))
    with processes.main_process_first():
        cached = CachedTeacher(teacher, job.teacher_cache or work / "teacher.sqlite")
    # All probabilities would fill the disk; the few of an endpoint are dear.
    judge = cached if teacher.most_tokens < teacher.vocab_size else teacher
    try:
        with processes.main_process_first():
            quantized = quantized_student(student.model, folder, recipe.quantize, training)
        given = _beginnings(held_out)
        before, written = None, []
        if main:
            progress.stage("Measuring the student", 1)
            before = measure(student.model, judge, held_out)
            written = [_continued(student.model, ids) for ids in given]
            progress.advance(1)
        learned_by = processes.num_processes
        trained = train(
            Training(student, quantized, matching, recipe, cached, training, work, learned_by),
            progress,
        )
        found: list[Distilled | None] = [None]
        if before is not None:
            progress.stage("Measuring what it learned", 1)
            after = measure(trained.student.model, judge, held_out)
            progress.advance(1)
            made = Distilled(job.destination, before, after, layers, trained.losses)
            found = [made]
            decode = Tokenizer.from_str(student.text.tokenizer_json.decode()).decode
            writings = [
                Writing(
                    decode(ids),
                    decode(_taught(judge, ids)),
                    decode(earlier),
                    decode(_continued(trained.student.model, ids)),
                )
                for ids, earlier in zip(given, written, strict=True)
            ]
            _seal(job, trained, made, writings, work)
    finally:
        cached.close()
        if isinstance(teacher, EndpointTeacher):
            teacher.close()
    (result,) = broadcast_object_list(found)
    assert isinstance(result, Distilled)
    return result


def _processes() -> PartialState:
    """This process among those that `accelerate launch` or `torchrun` started; else it alone."""
    # While the main one cuts and measures, the others wait; one that died ends all of them.
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=2))


def _samples(job: DistillJob, student: TrainableModel) -> tuple[list[Sample], list[Sample]]:
    with tempfile.TemporaryDirectory() as folder:
        encoder = prompt_encoder(student.text, Path(folder))
        samples = read_samples(
            job.data, encoder, end=student.end, max_length=job.recipe.data.max_length
        )
    return split_held_out(samples, job.recipe.data.held_out)


def _beginnings(samples: Sequence[Sample]) -> list[list[int]]:
    """What the report shows continuations of: prompts of conversations, beginnings of texts."""
    shown = samples[:_SHOWN_SAMPLES]
    return [
        list(sample.ids[: sample.prompt if sample.prompt > 1 else _SHOWN_TOKENS // 2])
        for sample in shown
    ]


def _continued(model: Any, ids: list[int]) -> list[int]:
    with torch.no_grad():
        written = model.generate(
            torch.tensor([ids], device=model.device),
            max_new_tokens=_SHOWN_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
    found: list[int] = written[0, len(ids) :].tolist()
    return found


def _taught(teacher: Teacher, ids: list[int]) -> list[int]:
    """The teacher's continuation: it may run on any engine, so it is asked token by token."""
    whole = list(ids)
    for _ in range(_SHOWN_TOKENS):
        # An endpoint tells nothing after the last token, so there is one more.
        whole.append(int(teacher.tokens([*whole, whole[-1]], 1).ids[-2, 0]))
    return whole[len(ids) :]


def _work_folder(job: DistillJob, *, writes: bool) -> Path:
    """Where checkpoints and the teacher's answers wait, beside the destination."""
    work = job.destination.parent / f".{job.destination.name}.training"
    if not writes:
        return work
    inputs = {
        "checkpoint": str(job.checkpoint.resolve()),
        "teacher": _teacher_name(job.teacher),
        "data": [hashlib.sha256(path.read_bytes()).hexdigest() for path in job.data],
        "recipe": job.recipe.model_dump(mode="json"),
    }
    text = json.dumps(inputs, indent=2)
    kept = work / _JOB_FILE
    if kept.is_file() and kept.read_text() != text:
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    kept.write_text(text)
    return work


def _teacher_name(teacher: Path | Cloud | None) -> str | None:
    if isinstance(teacher, Cloud):
        return f"{teacher.base_url} {teacher.model}"
    return None if teacher is None else str(teacher.resolve())


def _teacher(job: DistillJob, student: TrainableModel) -> Teacher:
    if job.teacher is None:
        return ModelTeacher(
            copy.deepcopy(student.model), f"transformers {student.checkpoint.sha256()}"
        )
    if isinstance(job.teacher, Cloud):
        vocab_size = int(student.model.config.vocab_size)
        return EndpointTeacher(job.teacher, student.text.tokenizer_json, vocab_size)
    source: Bundle | Path = open_bundle(job.teacher) if is_bundle(job.teacher) else job.teacher
    if isinstance(source, Bundle):
        require_same_vocabulary(
            source.file(source.manifest.tokenizer.file).read_bytes(), student.text.tokenizer_json
        )
        return EngineTeacher(source)
    text = read_text(open_checkpoint(source))
    require_same_vocabulary(text.tokenizer_json, student.text.tokenizer_json)
    if source.suffix == ".gguf":
        # Its own engine needs a quarter of the memory.
        return EngineTeacher(source)
    model = load_trainable(source)
    return ModelTeacher(model.model, f"transformers {model.checkpoint.sha256()}")


def _seal(
    job: DistillJob,
    trained: Trained,
    result: Distilled,
    writings: Sequence[Writing],
    work: Path,
) -> None:
    """Write the checkpoint beside its place, then rename it there."""
    folder = work / "student"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save_checkpoint(trained.student, folder)
    if job.recipe.quantize is not None:
        save_blocks(folder, trained.blocks, job.recipe.quantize)
    if (work / ADAPTER_FOLDER).is_dir():
        (work / ADAPTER_FOLDER).rename(folder / ADAPTER_FOLDER)
    report = {
        **result.to_json(),
        "title": trained.student.checkpoint.name,
        "recipe": job.recipe.model_dump(mode="json"),
        "writings": [dataclasses.asdict(one) for one in writings],
    }
    # The folder may be moved.
    del report["path"]
    write_report(folder, report)
    if job.destination.exists():
        shutil.rmtree(job.destination)
    folder.rename(job.destination)
    shutil.rmtree(work)
