"""A measured divergence as the figures that bundles and reports carry."""

from __future__ import annotations

import numpy as np
from edgesdk_quantize.divergence import Divergence

from edgesdk.bundle.manifest import Quality
from edgesdk_export.quality.text import EvaluationText


def summary(found: Divergence, text: EvaluationText, *, weights_only: bool) -> Quality:
    """Four digits of each: the last ones depend on the number of threads, and bundles are
    reproducible."""
    several = len(found.kl) > 1
    return Quality(
        tokens=len(found.kl),
        text_name=text.name,
        text_sha256=text.sha256,
        kl_mean=_round(found.kl.mean()),
        kl_median=_round(np.median(found.kl)),
        kl_p99=_round(np.quantile(found.kl, 0.99)),
        top1_agreement=round(float(found.same_top1.mean()), 4),
        perplexity=_round(found.candidate_perplexity),
        checkpoint_perplexity=_round(found.reference_perplexity),
        perplexity_error=_round(found.candidate_perplexity_error) if several else None,
        checkpoint_perplexity_error=_round(found.reference_perplexity_error) if several else None,
        weights_only=weights_only,
    )


def _round(value: float | np.floating) -> float:
    return float(f"{value:.4g}")
