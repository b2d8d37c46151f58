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
    """Compare a transformers model with its teacher, over the whole vocabulary."""
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
        logits = model(input_ids=ids, use_cache=False).logits[0, rows].float().cpu().numpy()
    taught = teacher.tokens(sample.ids, teacher.vocab_size)
    reference = np.empty_like(logits)
    np.put_along_axis(
        reference, taught.ids[rows].cpu().numpy(), taught.log_probs[rows].cpu().numpy(), axis=1
    )
    meter = DivergenceMeter(np.asarray(sample.ids[sample.prompt :], np.int64))
    meter.add(reference, logits)
    return meter.result()
