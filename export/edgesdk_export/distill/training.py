"""Train a student to its last step: over stops and kills, and in less memory than was asked for."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from edgesdk.errors import RequestError, TrainingError, requires_extra
from edgesdk_export.checkpoint.trained_blocks import TrainedMatrix
from edgesdk_export.distill.divergence import divergence_named
from edgesdk_export.distill.hidden_states import HiddenStateMatching
from edgesdk_export.distill.quantization_aware import QuantizedStudent, quantized_student
from edgesdk_export.distill.recipe import DistillRecipe, TrainingRecipe
from edgesdk_export.distill.samples import Sample
from edgesdk_export.distill.students import TrainableModel
from edgesdk_export.distill.teachers import Teacher
from edgesdk_export.distill.trainer import DistillTrainer, Objective, TeacherCollator
from edgesdk_export.progress import ExportProgress

START_FOLDER, ADAPTER_FOLDER, _CHECKPOINTS = "start", "adapter", "checkpoints"
# Writing a checkpoint fails with these; the libraries that write it keep only their text.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = ("No space left", "quota exceeded", "File too large", "file write failed")


@dataclass(frozen=True)
class Training:
    """What is trained.

    Attributes:
        student: before it learned anything; `work` has it too.
        quantized: the student's matrices on their grid; None = it trains in floats.
        matching: whose hidden states it is to have; None = nobody's.
        work: a folder for checkpoints.
        processes: how many train it together.
    """

    student: TrainableModel
    quantized: QuantizedStudent | None
    matching: HiddenStateMatching | None
    recipe: DistillRecipe
    teacher: Teacher
    samples: Sequence[Sample]
    work: Path
    processes: int = 1


@dataclass(frozen=True)
class Trained:
    """What came of it.

    Attributes:
        blocks: matrices as they are to be stored, by their names, where they trained on a grid.
        losses: (step, loss) as they were logged.
    """

    student: TrainableModel
    blocks: Mapping[str, TrainedMatrix]
    losses: tuple[tuple[int, float], ...]


def train(training: Training, progress: ExportProgress) -> Trained:
    """Train to the end, from the last checkpoint if there is one.

    Where memory runs out, it goes on with half as many sequences at a time, and as many in a step.

    Raises:
        RequestError: the processes cannot share a step's sequences evenly.
        TrainingError: the loss is no number, the disk is full, or memory does not hold a single
            sequence (of several processes: as many as they have now).
    """
    recipe, work = training.recipe.training, training.work
    if recipe.batch % training.processes:
        raise RequestError(
            f"{training.processes} processes cannot share {recipe.batch} sequences of a step.",
            hint=f"Choose a batch in [training] that is a multiple of {training.processes}.",
        )
    share = recipe.batch // training.processes
    student, quantized, matching = training.student, training.quantized, training.matching
    progress.stage("Training", recipe.steps)
    micro_batch = _divisor(share, recipe.micro_batch)
    while True:
        learner = _with_lora(student, recipe)
        trainer = _trainer(learner, matching, training, micro_batch)
        trainer.add_callback(_LiveProgress(progress))
        # It prints each logged value as a dict; the progress and the report have them.
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train(resume_from_checkpoint=last_checkpoint(work / _CHECKPOINTS))
        except (OSError, MemoryError, RuntimeError, SafetensorError) as error:
            if _is_full(error):
                raise _full_disk(work, error) from None
            if not _ran_out_of_memory(error):
                raise
            if micro_batch == 1 or training.processes > 1:
                raise _too_large(micro_batch, training.processes, error) from None
            micro_batch = _divisor(share, micro_batch // 2)
            # Steps since the last checkpoint are made again, from the weights that it had.
            student = restarted(student, work)
            matching = None if matching is None else matching.of(student.model)
            quantized = quantized_student(
                student.model, work / START_FOLDER, training.recipe.quantize, training.samples
            )
            progress.stage(
                f"Training, {micro_batch} sequences at a time because memory ran out", recipe.steps
            )
            continue
        if recipe.lora_rank:
            if trainer.is_world_process_zero():
                learner.save_pretrained(str(work / ADAPTER_FOLDER))
            student = dataclasses.replace(student, model=learner.merge_and_unload())
        losses = tuple(
            (int(entry["step"]), float(entry["loss"]))
            for entry in trainer.state.log_history
            if "loss" in entry
        )
        return Trained(student, {} if quantized is None else quantized.finish(), losses)


def restarted(student: TrainableModel, work: Path) -> TrainableModel:
    """The student as it was before it learned anything."""
    model = type(student.model).from_pretrained(work / START_FOLDER, dtype=torch.float32)
    return dataclasses.replace(student, model=model)


class _LiveProgress(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Tells the progress of each step, its loss, and how fast tokens are learned."""

    def __init__(self, progress: ExportProgress) -> None:
        self._progress = progress
        self._began: tuple[float, int] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._began is None:
            self._began = time.monotonic(), state.num_input_tokens_seen
            self._progress.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.advance(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = kwargs.get("logs", {}).get("loss")
        if loss is None or self._began is None:
            return
        since, tokens = self._began
        speed = (state.num_input_tokens_seen - tokens) / max(time.monotonic() - since, 1e-9)
        self._progress.note(f"loss {float(loss):.4f}, {speed:,.0f} tokens/s")


def _divisor(share: int, limit: int) -> int:
    """The largest number of sequences up to `limit` of which several make exactly `share`."""
    return next(size for size in range(min(share, limit), 0, -1) if share % size == 0)


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
    learner: Any, matching: HiddenStateMatching | None, training: Training, micro_batch: int
) -> DistillTrainer:
    recipe = training.recipe.training
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
        output_dir=str(training.work / _CHECKPOINTS),
        max_steps=recipe.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=recipe.batch // (micro_batch * training.processes),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(recipe.warmup * recipe.steps),
        weight_decay=0.0,
        logging_steps=max(1, recipe.steps // 100),
        save_steps=recipe.save_every,
        save_total_limit=2,
        bf16=has_bf16() if recipe.bfloat16 is None else recipe.bfloat16,
        # It would look for bfloat16 on a GPU alone.
        use_cpu=not torch.accelerator.is_available(),
        seed=recipe.seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=torch.cuda.is_available(),
        # All parameters take part in each step.
        ddp_find_unused_parameters=False,
    )
    return DistillTrainer(
        objective=objective,
        teacher=training.teacher,
        hidden_states=matching,
        model=learner,
        args=arguments,
        train_dataset=list(enumerate(training.samples)),
        data_collator=TeacherCollator(training.teacher, objective, pad=0),
    )


def has_bf16() -> bool:
    """Whether the machine multiplies in bfloat16 faster than in float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def last_checkpoint(checkpoints: Path) -> str | None:
    """The latest of the trainer's checkpoints in a folder that was written whole; None for none."""
    whole = [folder for folder in checkpoints.glob("checkpoint-*") if _is_whole(folder)]
    latest = max(whole, key=_step, default=None)
    return None if latest is None else str(latest)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(checkpoint: Path) -> bool:
    """Whether all of it was written: transformers writes this file last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(text in str(error) for text in _FULL_TEXTS)


def _full_disk(work: Path, error: BaseException) -> TrainingError:
    """What to say of it, after half a checkpoint was removed."""
    for folder in (work / _CHECKPOINTS).glob("checkpoint-*"):
        if not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
    last = last_checkpoint(work / _CHECKPOINTS)
    kept = "no checkpoint is kept" if last is None else f"step {_step(Path(last))} is kept"
    return TrainingError(
        f"The disk that holds {work} is full: {error}; {kept}.",
        hint="Free some space, then give the same command again: it goes on from what is kept.",
    )


def _too_large(micro_batch: int, processes: int, error: BaseException) -> TrainingError:
    if processes > 1:
        # Another process may be waiting for this one's gradients.
        return TrainingError(
            f"Memory does not hold {micro_batch} sequences in each of {processes} processes:"
            f" {error}.",
            hint="Choose a smaller micro_batch in [training]; steps do not change with it.",
        )
    return TrainingError(
        f"Memory does not hold one sequence: {error}.",
        hint="Choose a smaller max_length in [data].",
    )


def _ran_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # What torch's allocator for the CPU raises has no type of its own.
    return "DefaultCPUAllocator: " in str(error)
