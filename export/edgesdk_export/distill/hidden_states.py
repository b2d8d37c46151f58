"""Let a student's hidden states follow its teacher's, layer by layer.

A student that was cut from its teacher has layers that were the teacher's: what each of them gives
is compared with what that layer gave in the teacher (as in TinyBERT: Jiao et al., 2019,
arXiv:1909.10351, whose layers are paired by a rule). The error at each position is relative to the
teacher's own state, so that no layer counts more because its states are larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgesdk.errors import RequestError
from edgesdk_export.distill.teachers import ModelTeacher, Teacher


class HiddenStateMatching:
    """Compares the layers of a student in training with the teacher's.

    Args:
        student: the transformers model that is trained.
        teacher: who has a hidden state to compare with: a transformers model.
        layers: for each layer of the student, its number in the teacher.
        weight: what the comparison counts in the loss, beside the divergence.
        kept_tokens: the teacher's numbers of the student's tokens; None = the same.

    Raises:
        RequestError: the teacher is no transformers model, or has not these layers.
    """

    def __init__(
        self,
        student: Any,
        teacher: Teacher,
        layers: Sequence[int],
        weight: float,
        kept_tokens: Sequence[int] | None = None,
    ) -> None:
        if not isinstance(teacher, ModelTeacher):
            raise RequestError(
                "This teacher runs on an engine that gives no hidden states to compare with.",
                hint="Take a checkpoint as the teacher, or leave hidden_states out of [training].",
            )
        _require_alike(student.config, teacher.model.config, layers)
        self._arguments = (teacher, layers, weight, kept_tokens)
        self._teacher = teacher.model
        self._layers = layers
        self._weight = weight
        self._kept = None if kept_tokens is None else torch.tensor(kept_tokens)
        self._student = _LayerOutputs(student, range(len(layers)))
        self._taught = _LayerOutputs(self._teacher, layers)

    def of(self, student: Any) -> HiddenStateMatching:
        """The same comparison of another model with as many layers."""
        return HiddenStateMatching(student, *self._arguments)

    def loss(self, ids: Tensor, mask: Tensor, learned: Tensor) -> Tensor:
        """The weighted error, summed over the positions that are learned, after a forward pass of
        the student.

        Args:
            ids, mask: int64 [batch, length], what the student read.
            learned: bool [batch, length].
        """
        read = ids if self._kept is None else self._kept.to(ids.device)[ids]
        with torch.no_grad():
            self._teacher(input_ids=read, attention_mask=mask, use_cache=False)
        total = torch.zeros((), device=ids.device)
        for place, number in enumerate(self._layers):
            expected = self._taught.seen[number][learned].float()
            found = self._student.seen[place][learned].float()
            sizes = expected.square().sum(-1).clamp(min=1e-12)
            total = total + ((found - expected).square().sum(-1) / sizes).sum()
        return self._weight * total / len(self._layers)


class _LayerOutputs:
    """What chosen layers of a model gave in its last forward pass, by their numbers."""

    def __init__(self, model: Any, layers: Sequence[int]) -> None:
        self.seen: dict[int, Tensor] = {}
        for number in layers:
            model.model.layers[number].register_forward_hook(self._keeper(number))

    def _keeper(self, number: int) -> Any:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            self.seen[number] = output[0] if isinstance(output, tuple) else output

        return keep


def _require_alike(student: Any, teacher: Any, layers: Sequence[int]) -> None:
    if student.hidden_size == teacher.hidden_size and max(layers) < teacher.num_hidden_layers:
        return
    raise RequestError(
        f"The student's hidden states of {student.hidden_size} values after the layers up to"
        f" {max(layers)} have no counterpart in a teacher of {teacher.num_hidden_layers} layers"
        f" with {teacher.hidden_size} values.",
        hint="Take the checkpoint that the student was cut from as the teacher, or leave"
        " hidden_states out of [training].",
    )
