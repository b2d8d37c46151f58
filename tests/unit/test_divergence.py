"""KL, agreement and perplexity, against torch's own functions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from edgesdk_quantize.divergence import Divergence, DivergenceMeter, join
from hypothesis import given, settings
from hypothesis import strategies as st


def _measure(reference, candidate, targets, cuts) -> Divergence:
    meter = DivergenceMeter(targets)
    edges = [0, *sorted(cuts), reference.shape[1]]
    for start, stop in itertools.pairwise(edges):
        if stop > start:
            meter.add(reference[:, start:stop], candidate[:, start:stop])
    return meter.result()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.1, 3.0, 40.0]),
    cuts=st.lists(st.integers(0, 97), max_size=5),
)
def test_matches_torch_whatever_the_slices(seed: int, scale: float, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    reference = (rng.standard_normal((7, 97)) * scale).astype(np.float32)
    candidate = (reference + rng.standard_normal((7, 97)) * scale / 5).astype(np.float32)
    targets = rng.integers(0, 97, 7)
    found = _measure(reference, candidate, targets, cuts)

    p = torch.log_softmax(torch.tensor(reference, dtype=torch.float64), dim=1)
    q = torch.log_softmax(torch.tensor(candidate, dtype=torch.float64), dim=1)
    kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=1)
    picked = torch.tensor(targets)[:, None]
    np.testing.assert_allclose(found.kl, kl.numpy(), rtol=1e-4, atol=1e-4 * scale)
    np.testing.assert_array_equal(found.same_top1, (p.argmax(1) == q.argmax(1)).numpy())
    np.testing.assert_allclose(
        found.reference_nll, -p.gather(1, picked)[:, 0], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        found.candidate_nll, -q.gather(1, picked)[:, 0], rtol=1e-5, atol=1e-5
    )


def test_the_error_of_a_perplexity_is_what_many_texts_scatter_by() -> None:
    """Of 4,000 texts of 400 tokens whose likelihoods come from one distribution."""
    rng = np.random.default_rng(5)
    nll = rng.gamma(2.0, 1.0, (4_000, 400))
    texts = [Divergence(row, row > 0, row, row + 1) for row in nll]
    scatter = np.std([text.reference_perplexity for text in texts])
    given = np.mean([text.reference_perplexity_error for text in texts])
    assert given == pytest.approx(scatter, rel=0.1)
    shifted = np.mean([text.candidate_perplexity_error for text in texts])
    assert shifted == pytest.approx(np.e * given, rel=1e-6)


def test_a_model_against_itself_is_zero() -> None:
    logits = np.random.default_rng(1).standard_normal((5, 300)).astype(np.float32)
    found = _measure(logits, logits, np.arange(5), [100])
    assert found.kl.max() < 1e-6
    assert found.same_top1.all()


def test_shifted_logits_are_the_same_distribution() -> None:
    logits = np.random.default_rng(1).standard_normal((5, 300)).astype(np.float32)
    found = _measure(logits, logits + 7, np.arange(5), [])
    assert found.kl.max() < 1e-5


def test_not_finite_is_refused() -> None:
    logits = np.zeros((1, 4), np.float32)
    broken = logits.copy()
    broken[0, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        DivergenceMeter(np.zeros(1, np.int64)).add(logits, broken)


def test_join_keeps_order() -> None:
    logits = np.random.default_rng(1).standard_normal((6, 30)).astype(np.float32)
    other = logits[:, ::-1].copy()
    targets = np.arange(6)
    whole = _measure(logits, other, targets, [])
    parts = join([_measure(logits[a:b], other[a:b], targets[a:b], []) for a, b in ((0, 2), (2, 6))])
    np.testing.assert_allclose(parts.kl, whole.kl)
    np.testing.assert_array_equal(parts.same_top1, whole.same_top1)
