"""Streaming two models through memory layer by layer gives what running them whole gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from edgesdk_export.quality import layerwise
from edgesdk_export.quality.evaluation_text import (
    EvaluationText,
    Windows,
    cut_windows,
    default_text,
)
from edgesdk_export.quality.layerwise import LayerDivergence
from tokenizers import Tokenizer, models, pre_tokenizers

from edgesdk.errors import ExportError


@dataclass(frozen=True)
class ToyStack:
    """embed -> tanh layers -> head, all dense."""

    table: np.ndarray
    weights: tuple[np.ndarray, ...]
    out: np.ndarray

    @property
    def layers(self) -> int:
        return len(self.weights)

    @property
    def hidden_size(self) -> int:
        return self.table.shape[1]

    @property
    def vocab_size(self) -> int:
        return self.table.shape[0]

    def embed(self):
        return lambda ids: self.table[ids]

    def layer(self, index: int):
        return lambda hidden: hidden + np.tanh(hidden @ self.weights[index])

    def head(self, start: int, stop: int):
        return lambda hidden: hidden @ self.out[:, start:stop]

    def whole(self, ids: np.ndarray) -> np.ndarray:
        hidden = self.table[ids]
        for weight in self.weights:
            hidden = hidden + np.tanh(hidden @ weight)
        return hidden @ self.out


def _toy(seed: int, noise: float = 0.0) -> ToyStack:
    rng, other = np.random.default_rng(seed), np.random.default_rng(99)

    def draw(*shape: int) -> np.ndarray:
        base = rng.standard_normal(shape)
        return (base + noise * other.standard_normal(shape)).astype(np.float32)

    return ToyStack(draw(50, 8), tuple(draw(8, 8) for _ in range(3)), draw(8, 50))


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) of logits [positions, vocab]."""
    logs = [torch.log_softmax(torch.tensor(logits).double(), -1) for logits in (p, q)]
    found = torch.nn.functional.kl_div(logs[1], logs[0], reduction="none", log_target=True)
    return found.sum(-1).numpy()


@pytest.mark.parametrize("head_bytes", [1 << 20, 17 * 4 * 8, 1])
def test_streamed_equals_whole(monkeypatch: pytest.MonkeyPatch, head_bytes: int) -> None:
    monkeypatch.setattr(layerwise, "_HEAD_BYTES", head_bytes)
    reference, candidate = _toy(1), _toy(1, noise=0.05)
    ids = np.random.default_rng(2).integers(0, 50, (4, 9))
    steps = []
    found = layerwise.compare(
        reference, candidate, Windows(ids), progress=lambda done, total: steps.append((done, total))
    )
    logits = [stack.whole(ids)[:, :-1].reshape(-1, 50) for stack in (reference, candidate)]
    np.testing.assert_allclose(found.kl, _kl(*logits), rtol=1e-3, atol=1e-5)
    q = torch.log_softmax(torch.tensor(logits[1]).double(), -1)
    targets = torch.tensor(ids[:, 1:]).flatten()[:, None]
    np.testing.assert_allclose(found.candidate_nll, -q.gather(1, targets)[:, 0], rtol=1e-4)
    assert found.kl.mean() > 1e-3
    assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1))


@pytest.mark.parametrize("head_bytes", [1 << 20, 17 * 4 * 8])
def test_several_candidates_are_measured_as_each_alone(
    monkeypatch: pytest.MonkeyPatch, head_bytes: int
) -> None:
    monkeypatch.setattr(layerwise, "_HEAD_BYTES", head_bytes)
    reference, others = _toy(1), [_toy(1, noise=0.05), _toy(3)]
    windows = Windows(np.random.default_rng(2).integers(0, 50, (4, 9)))
    layer_divergence = LayerDivergence(len(others), positions=1000)
    together = layerwise.compare_many(
        reference, others, windows, progress=lambda *step: None, layer_divergence=layer_divergence
    )
    hidden = reference.table[windows.ids]
    theirs = [other.table[windows.ids] for other in others]
    for index, weight in enumerate(reference.weights):
        hidden = hidden + np.tanh(hidden @ weight)
        for number, other in enumerate(others):
            theirs[number] = theirs[number] + np.tanh(theirs[number] @ other.weights[index])
            expected = _kl(
                (hidden @ reference.out).reshape(-1, 50),
                (theirs[number] @ reference.out).reshape(-1, 50),
            )
            assert layer_divergence.result()[number][index] == pytest.approx(
                expected.mean(), rel=1e-3
            )
    for other, found in zip(others, together, strict=True):
        alone = layerwise.compare(reference, other, windows, progress=lambda *step: None)
        np.testing.assert_array_equal(found.kl, alone.kl)
        np.testing.assert_array_equal(found.candidate_nll, alone.candidate_nll)


def test_a_lens_spreads_the_positions_it_looks_at() -> None:
    reference, other = _toy(1), _toy(1, noise=0.05)
    windows = Windows(np.random.default_rng(2).integers(0, 50, (4, 9)))
    layer_divergence = LayerDivergence(1, positions=2)
    layerwise.compare_many(
        reference, [other], windows, progress=lambda *step: None, layer_divergence=layer_divergence
    )
    first, last = windows.ids[0, 0], windows.ids[-1, -1]
    states = [
        stack.table[[first, last]] + np.tanh(stack.table[[first, last]] @ stack.weights[0])
        for stack in (reference, other)
    ]
    expected = _kl(*(each @ reference.out for each in states))
    assert layer_divergence.result()[0][0] == pytest.approx(expected.mean(), rel=1e-3)


def _letters() -> bytes:
    vocab = {chr(c): c - 32 for c in range(32, 127)} | {"\n": 95}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return tokenizer.to_str().encode()


def test_windows_are_cut_from_the_start_and_begin_with_bos() -> None:
    text = EvaluationText("t", "abcdefghij" * 30)
    plain = cut_windows(text, _letters(), tokens=20, bos=None, context=10)
    assert plain.ids.shape == (2, 10)
    assert (plain.ids[0] == np.frombuffer(b"abcdefghij", np.uint8) - 32).all()
    assert plain.predictions == 18
    with_bos = cut_windows(text, _letters(), tokens=20, bos=7, context=10)
    assert with_bos.ids.shape == (3, 10)
    assert (with_bos.ids[:, 0] == 7).all()
    assert with_bos.ids[1, 1] == ord("j") - 32


def test_a_text_too_short_says_how_long_it_must_be() -> None:
    with pytest.raises(ExportError, match="'t' has 3 tokens; one window takes 10"):
        cut_windows(EvaluationText("t", "abc"), _letters(), tokens=20, bos=None, context=10)


def test_the_default_text_is_long_enough_for_every_report() -> None:
    assert len(default_text().text) > 300_000
