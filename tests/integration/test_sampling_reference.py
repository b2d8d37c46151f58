"""The sampler against transformers' logits processors."""

from __future__ import annotations

import numpy as np
import pytest

from edgesdk.generation.sampling import candidates, penalize_repetition

pytestmark = pytest.mark.integration

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB = 2000


def _logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 4, VOCAB).astype(np.float32)


def _reference(logits: np.ndarray, *processors: object) -> np.ndarray:
    scores = torch.tensor(logits)[None]
    for processor in processors:
        scores = processor(None, scores)  # type: ignore[operator]
    return np.asarray(torch.softmax(scores.double(), -1)[0])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.7, 40, 1.0, 0.0),
        (1.3, 0, 0.9, 0.0),
        (3.0, 0, 0.97, 0.0),
        (1.0, 0, 1.0, 0.05),
        (0.8, 50, 0.95, 0.02),
        (0.5, 1, 0.5, 0.5),
    ],
)
def test_candidates_are_those_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = _logits(seed)
    chain = [transformers.TemperatureLogitsWarper(temperature)]
    if top_k:
        chain.append(transformers.TopKLogitsWarper(top_k))
    if top_p < 1:
        chain.append(transformers.TopPLogitsWarper(top_p))
    if min_p:
        chain.append(transformers.MinPLogitsWarper(min_p))

    ids, probabilities = candidates(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )

    mine = np.zeros(VOCAB)
    mine[slice(None) if ids is None else ids] = probabilities
    np.testing.assert_allclose(mine, _reference(logits, *chain), atol=1e-6)


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    logits, seen = _logits(9), [3, 5, 5, 1999]
    processor = transformers.RepetitionPenaltyLogitsProcessor(1.3)
    expected = processor(torch.tensor([seen]), torch.tensor(logits)[None])[0].numpy()

    penalize_repetition(logits, seen, 1.3)

    np.testing.assert_allclose(logits, expected, rtol=1e-6)
