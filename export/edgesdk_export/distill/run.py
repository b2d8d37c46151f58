"""Distill: cut a student, train it on its teacher, measure it, write a checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from edgesdk.bundle.opening import Bundle, is_bundle, open_bundle
from edgesdk.errors import RequestError, TrainingError, requires_extra
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.checkpoint.trained_blocks import TrainedMatrix
from edgesdk_export.distill.divergence import divergence_named
from edgesdk_export.distill.hidden_states import HiddenStateMatching
from edgesdk_export.distill.measure import HeldOut, measure
from edgesdk_export.distill.quantization_aware import (
    QuantizedStudent,
    quantized_student,
    save_blocks,
)
from edgesdk_export.distill.recipe import DistillRecipe, TrainingRecipe
from edgesdk_export.distill.report import Writing, report_html
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
from edgesdk_export.distill.trainer import DistillTrainer, Objective, TeacherCollator
from edgesdk_export.distill.vocabulary import TrimmedTeacher
from edgesdk_export.progress import ExportProgress
from edgesdk_export.tokenizers import read_text

_JOB_FILE = "job.json"
_START_FOLDER, _ADAPTER_FOLDER = "start", "adapter"
REPORT_FILE, PAGE_FILE = "distillation.json", "distillation.html"
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
        teacher: a checkpoint, a bundle or a `.gguf`; None = the checkpoint itself.
        replace: whether a folder that stands at `destination` may be replaced.
    """

    checkpoint: Path
    data: tuple[Path, ...]
    destination: Path
    recipe: DistillRecipe = field(default_factory=DistillRecipe)
    teacher: Path | None = None
    replace: bool = False


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
    """
    if job.destination.exists() and not job.replace:
        raise RequestError(
            f"{job.destination} is there already.", hint="Choose another folder, or pass --force."
        )
    recipe = job.recipe
    work = _work_folder(job)
    progress.stage("Loading the student", 1)
    student = load_trainable(job.checkpoint)
    encoder = prompt_encoder(student.text, work)
    samples = read_samples(job.data, encoder, end=student.end, max_length=recipe.data.max_length)
    training, held_out = split_held_out(samples, recipe.data.held_out)
    progress.advance(1)
    teacher = _teacher(job, student)
    folder = work / _START_FOLDER
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
    cached = CachedTeacher(teacher, work / "teacher.sqlite")
    try:
        quantized = quantized_student(student.model, folder, recipe.quantize, training)
        progress.stage("Measuring the student", 1)
        before = measure(student.model, teacher, held_out)
        given = _beginnings(held_out)
        written = [_continued(student.model, ids) for ids in given]
        progress.advance(1)
        student, blocks, losses = _train(
            student, quantized, matching, cached, training, recipe, work, progress
        )
        progress.stage("Measuring what it learned", 1)
        after = measure(student.model, teacher, held_out)
        progress.advance(1)
    finally:
        cached.close()
    result = Distilled(job.destination, before, after, layers, losses)
    decode = Tokenizer.from_str(student.text.tokenizer_json.decode()).decode
    writings = [
        Writing(
            decode(ids),
            decode(_taught(teacher, ids)),
            decode(earlier),
            decode(_continued(student.model, ids)),
        )
        for ids, earlier in zip(given, written, strict=True)
    ]
    _seal(job, student, blocks, result, writings, work)
    return result


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
        whole.append(int(teacher.tokens(whole, 1).ids[-1, 0]))
    return whole[len(ids) :]


def _work_folder(job: DistillJob) -> Path:
    """Where checkpoints and the teacher's answers wait, beside the destination."""
    work = job.destination.parent / f".{job.destination.name}.training"
    inputs = {
        "checkpoint": str(job.checkpoint.resolve()),
        "teacher": None if job.teacher is None else str(job.teacher.resolve()),
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


def _teacher(job: DistillJob, student: TrainableModel) -> Teacher:
    if job.teacher is None:
        return ModelTeacher(
            copy.deepcopy(student.model), f"transformers {student.checkpoint.sha256()}"
        )
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


def _restarted(student: TrainableModel, work: Path) -> TrainableModel:
    model = type(student.model).from_pretrained(work / _START_FOLDER, dtype=torch.float32)
    return dataclasses.replace(student, model=model)


class _ProgressCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Tells the progress of each step."""

    def __init__(self, progress: ExportProgress) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.advance(state.global_step)


def _train(
    student: TrainableModel,
    quantized: QuantizedStudent | None,
    matching: HiddenStateMatching | None,
    teacher: Teacher,
    samples: Sequence[Sample],
    whole: DistillRecipe,
    work: Path,
    progress: ExportProgress,
) -> tuple[TrainableModel, Mapping[str, TrainedMatrix], tuple[tuple[int, float], ...]]:
    """Train to the end; where memory runs out, go on with smaller micro-batches."""
    recipe = whole.training
    progress.stage("Training", recipe.steps)
    micro_batch = min(recipe.micro_batch, recipe.batch)
    while True:
        learner = _with_lora(student, recipe)
        trainer = _trainer(learner, teacher, matching, samples, recipe, work, micro_batch)
        trainer.add_callback(_ProgressCallback(progress))
        # It prints each logged value as a dict; the progress and the report have them.
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train(resume_from_checkpoint=_last_checkpoint(work))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _ran_out_of_memory(error):
                raise
            if micro_batch == 1:
                raise TrainingError(
                    f"Memory does not hold one sequence: {error}.",
                    hint="Choose a smaller max_length in [data].",
                ) from None
            micro_batch //= 2
            # Steps since the last checkpoint are made again, from the weights that it had.
            student = _restarted(student, work)
            matching = None if matching is None else matching.of(student.model)
            quantized = quantized_student(
                student.model, work / _START_FOLDER, whole.quantize, samples
            )
            progress.stage(
                f"Training, {micro_batch} sequences at a time because memory ran out", recipe.steps
            )
            continue
        if recipe.lora_rank:
            learner.save_pretrained(str(work / _ADAPTER_FOLDER))
            student = dataclasses.replace(student, model=learner.merge_and_unload())
        blocks = {} if quantized is None else quantized.finish()
        return (
            student,
            blocks,
            tuple(
                (int(entry["step"]), float(entry["loss"]))
                for entry in trainer.state.log_history
                if "loss" in entry
            ),
        )


def _with_lora(student: TrainableModel, recipe: TrainingRecipe) -> Any:
    """The model that is trained: the student's own, or that with low-rank matrices beside it."""
    if not recipe.lora_rank:
        return student.model
    with requires_extra("distill", needed_for="Training with lora_rank"):
        from peft import LoraConfig, get_peft_model
    adapter = LoraConfig(
        r=recipe.lora_rank, lora_alpha=2 * recipe.lora_rank, target_modules="all-linear"
    )
    return get_peft_model(student.model, adapter)


def _trainer(
    learner: Any,
    teacher: Teacher,
    matching: HiddenStateMatching | None,
    samples: Sequence[Sample],
    recipe: TrainingRecipe,
    work: Path,
    micro_batch: int,
) -> DistillTrainer:
    objective = Objective(
        divergence_named(recipe.loss),
        teacher_tokens=recipe.teacher_tokens,
        cross_entropy=recipe.cross_entropy,
        on_policy=recipe.on_policy,
        cross_entropy_end=recipe.cross_entropy_end,
        on_policy_end=recipe.on_policy_end,
        sampled_tokens=recipe.sampled_tokens,
    )
    arguments = TrainingArguments(
        output_dir=str(work / "checkpoints"),
        max_steps=recipe.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=-(-recipe.batch // micro_batch),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(recipe.warmup * recipe.steps),
        weight_decay=0.0,
        logging_steps=max(1, recipe.steps // 100),
        save_steps=recipe.save_every,
        save_total_limit=2,
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        seed=recipe.seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    return DistillTrainer(
        objective=objective,
        teacher=teacher,
        hidden_states=matching,
        model=learner,
        args=arguments,
        train_dataset=list(enumerate(samples)),
        data_collator=TeacherCollator(teacher, objective, pad=0),
    )


def _last_checkpoint(work: Path) -> str | None:
    folders = (work / "checkpoints").glob("checkpoint-*")
    # transformers writes this file last.
    whole = [folder for folder in folders if (folder / "trainer_state.json").is_file()]
    latest = max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
    return None if latest is None else str(latest)


def _ran_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # What torch's allocator for the CPU raises has no type of its own.
    return "DefaultCPUAllocator: " in str(error)


def _seal(
    job: DistillJob,
    student: TrainableModel,
    blocks: Mapping[str, TrainedMatrix],
    result: Distilled,
    writings: Sequence[Writing],
    work: Path,
) -> None:
    """Write the checkpoint beside its place, then rename it there."""
    folder = work / "student"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save_checkpoint(student, folder)
    if job.recipe.quantize is not None:
        save_blocks(folder, blocks, job.recipe.quantize)
    if (work / _ADAPTER_FOLDER).is_dir():
        (work / _ADAPTER_FOLDER).rename(folder / _ADAPTER_FOLDER)
    report = result.to_json() | {"recipe": job.recipe.model_dump(mode="json")}
    # The folder may be moved.
    del report["path"]
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
    page = report_html(
        student.checkpoint.name,
        layers=result.layers,
        before=result.before,
        after=result.after,
        losses=result.losses,
        writings=writings,
        recipe=json.dumps(report["recipe"], indent=2),
    )
    (folder / PAGE_FILE).write_text(page, encoding="utf-8")
    if job.destination.exists():
        shutil.rmtree(job.destination)
    folder.rename(job.destination)
    shutil.rmtree(work)
