"""Penalties and DRY beside llama.cpp's samplers of the same settings."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from edgesdk.engines.gguf.library import load_library
from edgesdk.generation.sampling import (
    penalize_continued_repetition,
    penalize_presence,
    penalize_repetition,
)
from tests.support.fuzzed_ggufs import write_small_gguf

api = pytest.importorskip("llama_cpp").llama_cpp
pytestmark = pytest.mark.integration

_BREAKERS = ("\n", ":", '"', "*")


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path = tmp_path_factory.mktemp("samplers") / "model.gguf"
    write_small_gguf(path, "llama")
    load_library()
    params = api.llama_model_default_params()
    params.vocab_only = True
    model = api.llama_model_load_from_file(str(path).encode(), params)
    assert model is not None
    yield api.llama_model_get_vocab(model)
    api.llama_model_free(model)


def _text(vocab: int, token: int) -> bytes:
    buffer = ctypes.create_string_buffer(64)
    size = api.llama_token_to_piece(vocab, token, buffer, 64, 0, True)
    return buffer.raw[: max(size, 0)]


def _sampled(sampler: int, seen: Sequence[int], logits: np.ndarray) -> np.ndarray:
    """The logits as llama.cpp's sampler changes them after `seen`."""
    try:
        for token in seen:
            api.llama_sampler_accept(sampler, token)
        data = (api.llama_token_data * logits.size)()
        for token, logit in enumerate(logits):
            data[token] = api.llama_token_data(token, float(logit), 0.0)
        array = api.llama_token_data_array(data, logits.size, -1, False)
        api.llama_sampler_apply(sampler, ctypes.byref(array))
        changed = np.empty_like(logits)
        for entry in data:
            changed[entry.id] = entry.logit
        return changed
    finally:
        api.llama_sampler_free(sampler)


def _sequences(size: int) -> Iterator[tuple[random.Random, list[int]]]:
    """Sequences over few tokens, so that they repeat themselves."""
    for seed in range(60):
        chance = random.Random(seed)
        used = chance.sample(range(size), chance.choice([1, 2, 3, 6]))
        yield chance, [chance.choice(used) for _ in range(chance.choice([0, 1, 2, 5, 30, 80]))]


def test_penalties_change_logits_as_llama_cpp_does(vocab: int) -> None:
    size = api.llama_vocab_n_tokens(vocab)
    for chance, seen in _sequences(size):
        logits = np.random.default_rng(len(seen)).normal(0, 4, size).astype(np.float32)
        repeat, frequency, presence = (
            chance.uniform(0.5, 2),
            chance.uniform(-2, 2),
            chance.uniform(-2, 2),
        )
        last = chance.choice([1, 3, 64])
        sampler = api.llama_sampler_init_penalties(size, last, repeat, frequency, presence)
        theirs = _sampled(sampler, seen, logits)

        ours = logits.copy()
        penalize_repetition(ours, seen[-last:], repeat)
        penalize_presence(ours, seen[-last:], presence, frequency)

        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_dry_changes_logits_as_llama_cpp_does(vocab: int) -> None:
    size = api.llama_vocab_n_tokens(vocab)
    texts = [_text(vocab, token) for token in range(size)]
    breaks = [any(breaker.encode() in text for breaker in _BREAKERS) for text in texts]
    assert 0 < sum(breaks) < size
    changed = 0
    for chance, seen in _sequences(size):
        logits = np.random.default_rng(len(seen)).normal(0, 4, size).astype(np.float32)
        multiplier, base = chance.uniform(0.1, 2), chance.choice([1.0, 1.2, 1.75])
        allowed = chance.choice([1, 2, 4])
        breakers = (ctypes.c_char_p * len(_BREAKERS))(*(text.encode() for text in _BREAKERS))
        sampler = api.llama_sampler_init_dry(
            vocab, multiplier, base, allowed, 4096, breakers, len(_BREAKERS)
        )
        theirs = _sampled(sampler, seen, logits)

        ours = logits.copy()
        penalize_continued_repetition(
            ours,
            seen,
            multiplier=multiplier,
            base=base,
            allowed_length=allowed,
            breaks=breaks.__getitem__,
        )

        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        changed += not np.array_equal(ours, logits)
    assert changed > 20
