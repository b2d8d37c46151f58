"""Learn answers: cross-entropy on what the cloud said, with transformers' own loop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from edgesdk.errors import TrainingError, requires_extra
from edgesdk_export.distill.samples import Sample
from edgesdk_export.distill.students import TrainableModel, save_checkpoint
from edgesdk_export.distill.training import has_bf16, last_checkpoint
from edgesdk_export.flywheel.frozen_layers import states_below
from edgesdk_export.flywheel.recipe import LearningRecipe
from edgesdk_export.progress import ExportProgress

# What transformers' losses leave out.
_IGNORED = -100


def learn(
    model: TrainableModel,
    samples: Sequence[Sample],
    recipe: LearningRecipe,
    folder: Path,
    work: Path,
    progress: ExportProgress,
) -> None:
    """Train on samples, and save a peft adapter, or with `lora_rank = 0` the whole checkpoint.

    Args:
        folder: gets what was learned; written at the end.
        work: keeps checkpoints, from which a stopped run goes on to the same losses.

    Raises:
        TrainingError: the loss is no number.
    """
    learner, states = model.model, None
    if recipe.lora_rank:
        learner, first = with_lora(model.model, recipe)
        if first:
            progress.stage("Computing the layers that are not trained", len(samples))
            states = states_below(model.model, first, samples, progress.advance)
    progress.stage("Learning from the cloud's answers", recipe.steps)
    trainer = _AnswerTrainer(
        model=learner,
        args=_arguments(recipe, work),
        train_dataset=list(range(len(samples))),
        data_collator=_Batches(samples, states),
        callbacks=[_Watch(progress)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(work))
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.lora_rank:
        learner.save_pretrained(str(folder))
    else:
        save_checkpoint(dataclasses.replace(model, model=learner.eval()), folder)


def with_lora(model: Any, recipe: LearningRecipe) -> tuple[Any, int]:
    """The model with low-rank matrices beside those of its last layers, and the first of these.

    Only the low-rank matrices are trained.
    """
    with requires_extra("distill", needed_for="Training an adapter"):
        from peft import LoraConfig, get_peft_model
    count = int(model.config.num_hidden_layers)
    first = max(0, count - recipe.lora_layers) if recipe.lora_layers else 0
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=2 * recipe.lora_rank,
        target_modules=_linear_names(model),
        layers_to_transform=list(range(first, count)),
    )
    return get_peft_model(model, config), first


def _linear_names(model: Any) -> list[str]:
    """Names of the linear parts of a decoder layer, as "q_proj"."""
    return sorted(
        {
            name.rpartition(".")[2]
            for name, part in model.model.layers[0].named_modules()
            if isinstance(part, torch.nn.Linear)
        }
    )


class _Batches:
    """Makes padded batches of samples, by their numbers.

    Args:
        states: what enters the first trained layer, [tokens, hidden] of each; None to begin with
            the tokens.
    """

    def __init__(self, samples: Sequence[Sample], states: Sequence[Tensor] | None) -> None:
        self._samples = samples
        self._states = states

    def __call__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """attention_mask, labels and input_ids, int64 [batch, length], or inputs_embeds, float32
        [batch, length, hidden].

        Padding comes last; neither it nor a prompt is learned.
        """
        chosen = [self._samples[number] for number in numbers]
        rows = [torch.tensor(sample.ids) for sample in chosen]
        labels = [row.clone() for row in rows]
        for label, sample in zip(labels, chosen, strict=True):
            label[: sample.prompt] = _IGNORED
        batch = {
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], True),
            "labels": pad_sequence(labels, True, _IGNORED),
        }
        if self._states is None:
            return batch | {"input_ids": pad_sequence(rows, True)}
        states = [self._states[number] for number in numbers]
        return batch | {"inputs_embeds": pad_sequence(states, True)}


def _arguments(recipe: LearningRecipe, work: Path) -> TrainingArguments:
    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(work),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(recipe.warmup * recipe.steps),
        weight_decay=0.0,
        logging_steps=max(1, recipe.steps // 100),
        logging_nan_inf_filter=False,
        save_steps=recipe.save_every,
        save_total_limit=2,
        bf16=has_bf16(),
        use_cpu=not cuda,
        seed=recipe.seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
    )


class _AnswerTrainer(Trainer):  # type: ignore[misc, unused-ignore]
    """transformers' Trainer, which computes logits only where an answer is learned: with a large
    vocabulary and a short answer the others would take a third of the time."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean cross-entropy over the learned tokens, in nats."""
        given = dict(inputs)
        targets = given.pop("labels")[:, 1:]
        columns = (targets != _IGNORED).any(0).nonzero()[:, 0]
        outputs = model(**given, use_cache=False, logits_to_keep=columns)
        loss = functional.cross_entropy(
            outputs.logits.float().flatten(0, 1),
            targets[:, columns].flatten(),
            ignore_index=_IGNORED,
        )
        return (loss, outputs) if return_outputs else loss


class _Watch(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Tells the progress, and ends a run whose loss is no number."""

    def __init__(self, progress: ExportProgress) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.advance(state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise TrainingError(
                f"The loss became {loss} by step {state.global_step}.",
                hint="Go on from the last checkpoint with a lower learning rate.",
            )
