"""Measure a model against its teacher on held-out sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from edgesdk_quantize.divergence import Divergence, DivergenceMeter, join

from edgesdk_export.distill.samples import Sample
from edgesdk_export.distill.teachers import Teacher

# Of the tokens that a teacher does not tell; rounding may leave less than nothing.
_LEAST_MASS = 1e-7


@dataclass(frozen=True)
class HeldOut:
    """How a model does on text that it did not learn from.

    Attributes:
        tokens: how many predictions are compared.
        kl: KL(teacher || model), nats a token.
        top1: the share of tokens where both rank the same token first.
        perplexity: of the model; `teacher_perplexity` of the teacher.
    """

    tokens: int
    kl: float
    top1: float
    perplexity: float
    teacher_perplexity: float


def measure(model: Any, teacher: Teacher, samples: Sequence[Sample]) -> HeldOut:
    """Compare a transformers model with its teacher.

    Where the teacher gives its likeliest tokens only, the rest of its mass is spread as the model
    spreads it: the divergence is then that of those tokens and the rest, which is a lower bound.
    """
    found = join([_divergence(model, teacher, sample) for sample in samples if sample.learned])
    return HeldOut(
        tokens=len(found.kl),
        kl=float(found.kl.mean()),
        top1=float(found.same_top1.mean()),
        perplexity=found.candidate_perplexity,
        teacher_perplexity=found.reference_perplexity,
    )


def _divergence(model: Any, teacher: Teacher, sample: Sample) -> Divergence:
    # Position i predicts token i + 1.
    rows = slice(sample.prompt - 1, len(sample.ids) - 1)
    ids = torch.tensor([sample.ids], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, rows].float().cpu()
    taught = teacher.tokens(sample.ids, teacher.most_tokens)
    told, log_probs = taught.ids[rows].cpu(), taught.log_probs[rows].cpu().float()
    reference = logits
    if told.shape[-1] < logits.shape[-1]:
        reference = logits.log_softmax(-1)
        rest = reference.scatter(-1, told, -torch.inf).logsumexp(-1, keepdim=True)
        mass = 1 - log_probs.exp().sum(-1, keepdim=True)
        reference = reference + mass.clamp(min=_LEAST_MASS).log() - rest
    reference = reference.scatter(-1, told, log_probs)
    meter = DivergenceMeter(np.asarray(sample.ids[sample.prompt :], np.int64))
    meter.add(reference.numpy(), logits.numpy())
    return meter.result()
