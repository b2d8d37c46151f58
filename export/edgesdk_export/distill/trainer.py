"""Train a student on a teacher's distributions, with transformers' own loop.

transformers.Trainer has the loop, the optimizer, mixed precision, gradient accumulation and
checkpointing, logging, resuming and, under `accelerate launch`, several devices. Here is what it
lacks: the loss, the batches with a teacher's answers in them, and the student's own writing as data
(on-policy distillation: Agarwal et al., 2023, arXiv:2306.13649).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Trainer

from edgesdk.errors import TrainingError
from edgesdk_export.distill.divergence import Divergence, TeacherTokens, student_cells
from edgesdk_export.distill.hidden_states import HiddenStateMatching
from edgesdk_export.distill.samples import Sample
from edgesdk_export.distill.teachers import Teacher

# What transformers' losses leave out.
_IGNORED = -100


@dataclass(frozen=True)
class Objective:
    """What the student is to get small.

    Attributes:
        divergence: from the teacher, in nats per token.
        teacher_tokens: how many of the teacher's likeliest tokens count by themselves.
        cross_entropy: the share of plain cross-entropy on the text in the loss, 0 to 1.
        on_policy: the share of batches that the student writes itself, 0 to 1.
        cross_entropy_end, on_policy_end: what the shares come to in the last step, in equal steps;
            None = they stay.
        sampled_tokens: how many tokens it then writes.
    """

    divergence: Divergence
    teacher_tokens: int = 64
    cross_entropy: float = 0.0
    on_policy: float = 0.0
    sampled_tokens: int = 64
    cross_entropy_end: float | None = None
    on_policy_end: float | None = None


class TeacherCollator:
    """Makes padded batches of samples, with the teacher's distributions in them.

    A batch has input_ids, attention_mask and labels, int64 [batch, length], the samples' numbers,
    and teacher_ids and teacher_log_probs [batch, length, k]; padding comes last and is not learned.
    """

    def __init__(self, teacher: Teacher, objective: Objective, *, pad: int) -> None:
        self._teacher = teacher
        # Cross-entropy alone needs no teacher.
        alone = objective.cross_entropy == 1 and objective.cross_entropy_end in (None, 1)
        self._k = 0 if alone else min(objective.teacher_tokens, teacher.most_tokens)
        self._pad = pad

    def __call__(self, items: Sequence[tuple[int, Sample]]) -> dict[str, Tensor]:
        """A batch of numbered samples."""
        batch = self.batch([sample for _, sample in items])
        return batch | {"samples": torch.tensor([number for number, _ in items])}

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """A batch without the samples' numbers."""
        length = max(len(sample.ids) for sample in samples)
        shape = (len(samples), length)
        ids = torch.full(shape, self._pad)
        labels, mask = torch.full(shape, _IGNORED), torch.zeros(shape, dtype=torch.int64)
        teacher_ids = torch.zeros((*shape, self._k), dtype=torch.int64)
        log_probs = torch.zeros((*shape, self._k))
        for row, sample in enumerate(samples):
            size = len(sample.ids)
            ids[row, :size] = torch.tensor(sample.ids)
            mask[row, :size] = 1
            labels[row, sample.prompt : size] = ids[row, sample.prompt : size]
            if self._k:
                found = self._teacher.tokens(sample.ids, self._k)
                teacher_ids[row, :size], log_probs[row, :size] = found.ids, found.log_probs
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "teacher_ids": teacher_ids,
            "teacher_log_probs": log_probs,
        }


class DistillTrainer(Trainer):
    """transformers' Trainer with a teacher.

    Args:
        objective: see there.
        teacher: who judges what the student writes itself.
        hidden_states: compares layers with the teacher's, too; None = does not.
        kwargs: of Trainer; its `data_collator` is a `TeacherCollator`.
    """

    def __init__(
        self,
        *,
        objective: Objective,
        teacher: Teacher,
        hidden_states: HiddenStateMatching | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._objective = objective
        self._hidden_states = hidden_states
        self._teacher = teacher
        # So that it counts the learned tokens of a whole step, over accumulated micro-batches.
        self.model_accepts_loss_kwargs = True

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The batches of a step, some of which the student writes itself, and their tokens."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches or not self._writes_itself():
            return batches, count
        # Before tokens are counted: what is written has another length than what was read.
        # Drawn by the step alone: a resumed run gets its random state only after this.
        with torch.random.fork_rng():
            torch.manual_seed(self.args.seed + self.state.global_step)
            batches = [self._own_writing(batch) for batch in batches]
        return batches, self._get_num_items_in_batch(batches, device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean loss over the learned tokens, in nats.

        Raises:
            TrainingError: it is not a number.
        """
        batch = dict(inputs)
        numbers = batch.pop("samples")
        teacher_ids, log_probs = batch.pop("teacher_ids"), batch.pop("teacher_log_probs")
        outputs = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        )
        # Position i predicts token i + 1. Rows are selected by number: the gradient of a mask is
        # several times as slow.
        targets = functional.pad(batch["labels"][:, 1:], (0, 1), value=_IGNORED).flatten()
        learned = (targets != _IGNORED).nonzero()[:, 0]
        logits = outputs.logits.flatten(0, 1).index_select(0, learned)
        teacher = TeacherTokens(
            teacher_ids.flatten(0, 1)[learned],
            log_probs.flatten(0, 1)[learned],
            self._teacher.vocab_size,
        )
        loss = self._loss(logits, teacher, targets[learned])
        if self._hidden_states is not None:
            read = functional.pad(batch["labels"][:, 1:] != _IGNORED, (0, 1))
            loss = loss + self._hidden_states.loss(
                batch["input_ids"], batch["attention_mask"], read
            )
        count = num_items_in_batch if num_items_in_batch is not None else len(learned)
        mean = loss / torch.as_tensor(count, device=loss.device).clamp(min=1)
        if num_items_in_batch is not None:
            # It counts the tokens of all processes, whose gradients are averaged, not added.
            mean = mean * self.accelerator.num_processes
        if not torch.isfinite(mean):
            raise TrainingError(
                f"The loss became {float(mean)} in step {self.state.global_step + 1}, on the"
                f" samples {', '.join(map(str, numbers.tolist()))}.",
                hint="Go on from the last checkpoint with a lower learning rate, or without those"
                " samples.",
            )
        return (mean, outputs) if return_outputs else mean

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Raises where a weight is no number: the last checkpoint must be one to go on from."""
        if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
            raise TrainingError(
                f"A weight became no number in step {self.state.global_step}.",
                hint="Go on from the last checkpoint with a lower learning rate.",
            )
        super()._save_checkpoint(model, trial)

    def _loss(self, logits: Tensor, teacher: TeacherTokens, targets: Tensor) -> Tensor:
        share = self._now(self._objective.cross_entropy, self._objective.cross_entropy_end)
        total = logits.new_zeros((), dtype=torch.float32)
        if share < 1:
            cells = student_cells(logits, teacher)
            total = total + (1 - share) * self._objective.divergence(teacher.cells(), cells).sum()
        if share > 0:
            total = total + share * functional.cross_entropy(
                logits.float(), targets, reduction="sum"
            )
        return total

    def _writes_itself(self) -> bool:
        # By the step alone, so that a resumed run decides as the first one did.
        draw = random.Random(f"{self.args.seed} {self.state.global_step}").random()
        return draw < self._now(self._objective.on_policy, self._objective.on_policy_end)

    def _now(self, start: float, end: float | None) -> float:
        """A share in this step."""
        if end is None:
            return start
        done = self.state.global_step / max(1, self.state.max_steps - 1)
        return start + (end - start) * done

    def _own_writing(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The student's own continuations of the prompts of a batch, judged by the teacher."""
        writer = self.accelerator.unwrap_model(self.model)
        writer.eval()
        prompts = _prompts(batch)
        written = [
            Sample((*prompt, *answer), len(prompt))
            for prompt, answer in zip(prompts, self._continued(writer, prompts), strict=True)
        ]
        writer.train()
        collator = self.data_collator
        assert isinstance(collator, TeacherCollator)
        made = collator.batch(written)
        return {**batch, **{name: value.to(writer.device) for name, value in made.items()}}

    def _continued(self, writer: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
        """What the student says after each prompt, up to a token that ends an answer."""
        length = max(map(len, prompts))
        # Padding comes first, so that all go on at the same place.
        padding = [length - len(prompt) for prompt in prompts]
        ids = torch.tensor([[0] * n + ids for n, ids in zip(padding, prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (length - n) for n in padding])
        ends = _end_tokens(writer)
        with torch.no_grad(), self.compute_loss_context_manager():
            written = writer.generate(
                input_ids=ids.to(writer.device),
                attention_mask=mask.to(writer.device),
                max_new_tokens=self._objective.sampled_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=0,
            )
        return [_up_to(row, ends) for row in written[:, length:].tolist()]


def _end_tokens(writer: Any) -> frozenset[int]:
    found = writer.generation_config.eos_token_id
    return frozenset([] if found is None else [found] if isinstance(found, int) else found)


def _up_to(ids: list[int], ends: frozenset[int]) -> list[int]:
    """The tokens to the first of `ends`, and that one: after it `generate` pads."""
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: stop + 1]


def _prompts(batch: Mapping[str, Tensor]) -> list[list[int]]:
    """What the student goes on from: the prompts of conversations, the first half of texts."""
    prompts = []
    for ids, mask, labels in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        size, given = int(mask.sum()), int((labels == _IGNORED)[: int(mask.sum())].sum())
        prompts.append(ids[: given if given > 1 else max(1, size // 2)].tolist())
    return prompts
