from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgesdk.errors import EngineError, InvalidOption
from edgesdk.generation.sampling import (
    Sampler,
    candidates,
    draw,
    log_probability,
    top_log_probabilities,
)
from edgesdk.options import Options

_LOGITS = hnp.arrays(
    np.float32, st.integers(2, 60), elements=st.floats(-30, 30, width=32), unique=True
)


def _no_text(token: int) -> bytes:
    return b""


def _choices(logits: np.ndarray, count: int, **options: object) -> list[int]:
    sampler = Sampler(Options(**options), logits.size, _no_text)  # type: ignore[arg-type]
    return [sampler.choose(logits, [], []) for _ in range(count)]


@given(_LOGITS)
def test_greedy_takes_the_likeliest_whatever_the_cuts_are(logits: np.ndarray) -> None:
    assert _choices(logits, 1, top_k=3, top_p=0.5, min_p=0.9) == [int(np.argmax(logits))]


@given(_LOGITS)
def test_a_temperature_near_zero_is_greedy(logits: np.ndarray) -> None:
    second, first = np.sort(logits)[-2:]
    if first - second > 1e-3:
        assert set(_choices(logits, 5, temperature=1e-5, seed=1)) == {int(np.argmax(logits))}


def test_the_smallest_temperature_overflows_nowhere() -> None:
    logits = np.array([1.0, 2.0, -1e5, -np.inf], np.float32)

    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert set(_choices(logits, 3, temperature=5e-324)) == {1}


@given(
    _LOGITS,
    st.integers(0, 70),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.floats(0.1, 5),
)
def test_every_drawn_token_is_one_that_the_cuts_allow(
    logits: np.ndarray, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    before = logits.copy()

    [token] = _choices(
        logits, 1, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=0
    )

    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    # Weights, not logits: logits that differ may weigh the same in float32, and then either may be
    # kept.
    rank = int((weights > weights[token] * (1 + 1e-6)).sum())
    assert top_k == 0 or rank < top_k
    assert weights[token] >= min_p * (1 - 1e-4)
    kept = np.sort(weights)[::-1][: top_k or None]
    assert kept[:rank].sum() / kept.sum() < top_p + 1e-4
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("vocab", [5, 3000])
def test_tokens_come_as_often_as_they_are_likely(vocab: int) -> None:
    logits = np.random.default_rng(7).normal(0, 1, vocab).astype(np.float32)
    drawn = np.bincount(_choices(logits, 20_000, temperature=0.7, seed=11), minlength=vocab)

    weights = np.exp(logits.astype(np.float64) / 0.7)
    expected = 20_000 * weights / weights.sum()
    # Chi-squared over ten groups of tokens; 27.9 is its 99.9th percentile at 9 degrees.
    groups = np.array_split(np.argsort(expected), min(10, vocab))
    seen = np.array([drawn[group].sum() for group in groups])
    wanted = np.array([expected[group].sum() for group in groups])
    assert ((seen - wanted) ** 2 / wanted).sum() < 27.9


def test_drawing_reaches_the_first_and_the_last_of_many() -> None:
    random = np.random.default_rng(0)
    probabilities = np.zeros(5000, np.float32)
    probabilities[[0, 1023, 1024, 4999]] = 0.25

    assert {draw(probabilities, random) for _ in range(200)} == {0, 1023, 1024, 4999}


def test_the_same_seed_draws_the_same_tokens_and_another_one_others() -> None:
    logits = np.zeros(50, np.float32)
    one, again = (_choices(logits, 30, temperature=1.0, seed=5) for _ in range(2))

    assert one == again
    assert one != _choices(logits, 30, temperature=1.0, seed=6)


def test_a_nucleus_wider_than_the_head_is_found_too() -> None:
    ids, probabilities = candidates(
        np.zeros(4000, np.float32), temperature=1.0, top_k=0, top_p=0.5, min_p=0.0
    )

    assert ids is not None
    assert ids.size == pytest.approx(2000, abs=2)
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_a_bias_lifts_and_forbids_tokens() -> None:
    logits = np.array([3.0, 2.0, 1.0], np.float32)

    assert _choices(logits, 1, logit_bias={2: 5.0}) == [2]
    assert _choices(logits, 1, logit_bias={0: -math.inf}) == [1]


def test_presence_counts_once_and_frequency_each_time_and_only_in_the_answer() -> None:
    logits = np.array([5.0, 4.0, 0.0], np.float32)

    def choose(prompt: list[int], answer: list[int], **options: float) -> int:
        return Sampler(Options(**options), 3, _no_text).choose(logits, prompt, answer)  # type: ignore[arg-type]

    assert choose([0, 0, 0], [], presence_penalty=2.0, frequency_penalty=2.0) == 0
    assert choose([], [0], presence_penalty=0.9) == 0
    assert choose([], [0, 0], presence_penalty=0.9) == 0
    assert choose([], [0], frequency_penalty=0.9) == 0
    assert choose([], [0, 0], frequency_penalty=0.9) == 1


def test_the_penalty_window_looks_at_the_latest_tokens_only() -> None:
    logits = np.array([5.0, 4.0, 0.0], np.float32)

    def choose(prompt: list[int], answer: list[int], window: int) -> int:
        options = Options(repetition_penalty=2.0, penalty_window=window)
        return Sampler(options, 3, _no_text).choose(logits, prompt, answer)

    assert choose([0, 2], [2], 3) == 1
    assert choose([0, 2], [2], 2) == 0
    assert choose([0], [2, 2], 2) == 0
    assert choose([2], [0, 2], 2) == 1


def test_log_probability_is_that_of_the_softmax() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32)) + 7

    assert math.exp(log_probability(logits, 1)) == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 1}])
def test_logits_that_are_not_numbers_are_an_error(options: dict[str, object]) -> None:
    with pytest.raises(EngineError, match="not numbers"):
        _choices(np.array([1.0, np.nan, 2.0], np.float32), 1, **options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forbidding_every_token_is_an_error(temperature: float) -> None:
    bias = {0: -math.inf, 1: -math.inf}

    with pytest.raises(InvalidOption, match="forbids every token"):
        _choices(np.zeros(2, np.float32), 1, logit_bias=bias, temperature=temperature)


def test_a_bias_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(InvalidOption, match=r"token 9.*vocabulary has 9"):
        Sampler(Options(logit_bias={9: 1.0}), 9, _no_text)


@given(_LOGITS, st.integers(0, 70))
def test_the_likeliest_come_in_order_with_their_log_probabilities(
    logits: np.ndarray, count: int
) -> None:
    order = sorted(range(logits.size), key=lambda token: -logits[token])[:count]

    found = top_log_probabilities(logits, count)

    assert [token for token, _ in found] == order
    assert [value for _, value in found] == [log_probability(logits, token) for token in order]
