"""Measure how far one model's next-token distributions are from another's, on the same tokens.

Logits come in slices of the vocabulary, so that a large vocabulary never has to be held whole:
the softmax sums are kept online (Milakov and Gimelshein, 2018, arXiv:1805.02867).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Divergence:
    """Per position, float64 [positions] each (`same_top1` is bool).

    `kl` is KL(reference || candidate) in nats; the two `nll` are negative log-likelihoods of the
    token that really followed.
    """

    kl: Float64
    same_top1: npt.NDArray[np.bool_]
    reference_nll: Float64
    candidate_nll: Float64

    @property
    def reference_perplexity(self) -> float:
        """exp of the reference's mean negative log-likelihood."""
        return float(np.exp(self.reference_nll.mean()))

    @property
    def reference_perplexity_error(self) -> float:
        """Standard error of `reference_perplexity`: see `candidate_perplexity_error`."""
        return _perplexity_error(self.reference_nll)

    @property
    def candidate_perplexity(self) -> float:
        """exp of the candidate's mean negative log-likelihood."""
        return float(np.exp(self.candidate_nll.mean()))

    @property
    def candidate_perplexity_error(self) -> float:
        """Standard error of `candidate_perplexity` to first order, as llama.cpp gives it: the
        perplexity times the standard error of the mean log-likelihood, with positions taken as
        independent. NaN of a single position."""
        return _perplexity_error(self.candidate_nll)


def _perplexity_error(nll: Float64) -> float:
    return float(np.exp(nll.mean()) * nll.std(ddof=1) / np.sqrt(len(nll)))


class DivergenceMeter:
    """Takes both models' logits for the same positions, slice after slice of the vocabulary.

    Args:
        targets: int [positions], the token that really followed each position.
    """

    def __init__(self, targets: npt.NDArray[np.int64]) -> None:
        count = len(targets)
        self._targets = targets
        self._rows = np.arange(count)
        self._reference = _OnlineSoftmax(count)
        self._candidate = _OnlineSoftmax(count)
        # Sum of exp(r - max r) * (r - c): the cross term of the KL, on the reference's scale.
        self._cross = np.zeros(count)
        self._seen = 0

    def add(self, reference: Float32, candidate: Float32) -> None:
        """The next slice: float32 [positions, width] of each, starting where the last one ended.

        Raises:
            ValueError: a logit is NaN or infinite, or the shapes differ.
        """
        if reference.shape != candidate.shape or reference.shape[0] != len(self._targets):
            raise ValueError(f"logits of shapes {reference.shape} and {candidate.shape}")
        if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
            raise ValueError("logits are not finite")
        weights, shrink = self._reference.add(reference, self._seen)
        self._candidate.add(candidate, self._seen)
        gap = reference - candidate
        self._cross = self._cross * shrink + np.einsum("pv,pv->p", weights, gap, dtype=np.float64)
        inside = (self._targets >= self._seen) & (self._targets < self._seen + reference.shape[1])
        rows, columns = self._rows[inside], self._targets[inside] - self._seen
        self._reference.target[inside] = reference[rows, columns]
        self._candidate.target[inside] = candidate[rows, columns]
        self._seen += reference.shape[1]

    def result(self) -> Divergence:
        """Sum up all slices; call it after the last one."""
        reference, candidate = self._reference, self._candidate
        log_p, log_q = reference.log_normalizer(), candidate.log_normalizer()
        kl = self._cross / reference.total - log_p + log_q
        return Divergence(
            # Rounding may leave a few 1e-8 below zero, which no KL divergence is.
            kl=np.maximum(kl, 0.0),
            same_top1=reference.best == candidate.best,
            reference_nll=log_p - reference.target,
            candidate_nll=log_q - candidate.target,
        )


class _OnlineSoftmax:
    """The online softmax of one model: running maximum, its column, and the sum under it."""

    def __init__(self, count: int) -> None:
        self.top = np.full(count, -np.inf)
        self.best = np.zeros(count, dtype=np.int64)
        self.total = np.zeros(count)
        self.target = np.full(count, np.nan)

    def add(self, logits: Float32, offset: int) -> tuple[Float32, Float64]:
        """exp(logits - new maximum), and the factor that earlier sums shrink by."""
        columns = logits.argmax(axis=1)
        tops = np.take_along_axis(logits, columns[:, None], axis=1)[:, 0].astype(np.float64)
        higher = tops > self.top
        self.best[higher] = columns[higher] + offset
        top = np.maximum(self.top, tops)
        shrink = np.exp(self.top - top)
        weights = np.exp(logits - top[:, None].astype(np.float32))
        self.total = self.total * shrink + weights.sum(axis=1, dtype=np.float64)
        self.top = top
        return weights, shrink

    def log_normalizer(self) -> Float64:
        return self.top + np.log(self.total)


def join(parts: list[Divergence]) -> Divergence:
    """Several runs of positions as one."""
    return Divergence(
        kl=np.concatenate([part.kl for part in parts]),
        same_top1=np.concatenate([part.same_top1 for part in parts]),
        reference_nll=np.concatenate([part.reference_nll for part in parts]),
        candidate_nll=np.concatenate([part.candidate_nll for part in parts]),
    )
