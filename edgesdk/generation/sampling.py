"""From logits to a token.

The steps come in transformers' order: bias, repetition penalty, presence and frequency penalty,
DRY, temperature, top-k, top-p, min-p. Each is a small function over float32 logits [vocab]; those
that change logits do so in place, on the copy that the sampler owns.

Sources: repetition penalty, CTRL, arXiv:1909.05858; presence and frequency penalty, OpenAI's API;
top-p, Holtzman et al. 2020, arXiv:1904.09751; min-p, Nguyen et al. 2024, arXiv:2407.01082; DRY,
https://github.com/oobabooga/text-generation-webui/pull/5677, as llama.cpp computes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from edgesdk.engines.base import Logits
from edgesdk.errors import EngineError, InvalidOption
from edgesdk.options import Options

Ids = npt.NDArray[np.intp]
Probabilities = npt.NDArray[np.float32]

# A nucleus is nearly always smaller than this, and then the vocabulary need not be sorted.
_HEAD = 1024
_BLOCK = 1024
# Of the greatest factor that float32 holds; llama.cpp has the same limit.
_MAX_LOG, _TINY = 88.7, 1e-6


class Sampler:
    """Chooses tokens for one answer. The same seed and logits give the same tokens.

    Args:
        options: temperature, cuts, penalties, bias and seed.
        vocab_size: length of the logits.
        token_bytes: the text of a token, in which DRY looks for what ends a repetition.

    Raises:
        InvalidOption: `logit_bias` names a token outside the vocabulary.
    """

    def __init__(
        self, options: Options, vocab_size: int, token_bytes: Callable[[int], bytes]
    ) -> None:
        for token in options.logit_bias:
            if token >= vocab_size:
                raise InvalidOption(
                    f"logit_bias names token {token}; the vocabulary has {vocab_size}."
                )
        self._options = options
        self._breakers = [text.encode() for text in options.dry_sequence_breakers]
        self._breaks = cache(lambda token: any(b in token_bytes(token) for b in self._breakers))
        self._changes_logits = options.penalizes or bool(options.logit_bias)
        self._random = np.random.default_rng(options.seed)

    def choose(self, logits: Logits, prompt: Sequence[int], answer: Sequence[int]) -> int:
        """The next token.

        Args:
            logits: float32 [vocab]; left as they are.
            prompt: ids before the answer.
            answer: ids of the answer so far.

        Raises:
            EngineError: the logits hold NaN.
            InvalidOption: `logit_bias` forbids every token.
        """
        if self._changes_logits:
            logits = self._changed(logits, prompt, answer)
        if self._options.temperature == 0:
            token = int(logits.argmax())
            # argmax takes a NaN for the largest, so this one value tells for all.
            _check_finite(float(logits[token]))
            return token
        options = self._options
        ids, probabilities = candidates(
            logits,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
        )
        place = draw(probabilities, self._random)
        return place if ids is None else int(ids[place])

    def _changed(self, logits: Logits, prompt: Sequence[int], answer: Sequence[int]) -> Logits:
        options = self._options
        changed: Logits = logits.copy()
        add_bias(changed, options.logit_bias)
        if options.penalizes:
            seen, written = _windowed(prompt, answer, options.penalty_window)
            penalize_repetition(changed, seen, options.repetition_penalty)
            penalize_presence(changed, written, options.presence_penalty, options.frequency_penalty)
            if options.dry_multiplier != 0:
                penalize_continued_repetition(
                    changed,
                    _windowed(prompt, answer, options.dry_window)[0],
                    multiplier=options.dry_multiplier,
                    base=options.dry_base,
                    allowed_length=options.dry_allowed_length,
                    breaks=self._breaks,
                )
        return changed


def add_bias(logits: Logits, bias: Mapping[int, float]) -> None:
    """Add to the logits of some ids."""
    if bias:
        logits[list(bias)] += np.fromiter(bias.values(), np.float32, len(bias))


def without(logits: Logits, tokens: Iterable[int]) -> Logits:
    """A copy of logits in which these ids cannot be chosen; ids beyond the end are left out."""
    kept: Logits = logits.copy()
    kept[[token for token in tokens if token < len(kept)]] = -np.inf
    return kept


def penalize_repetition(logits: Logits, seen: Iterable[int], penalty: float) -> None:
    """Divide positive logits of `seen` ids by `penalty`, multiply negative ones."""
    if penalty != 1:
        ids = np.fromiter(set(seen), np.intp)
        values = logits[ids]
        logits[ids] = np.where(values < 0, values * penalty, values / penalty)


def penalize_presence(
    logits: Logits, written: Iterable[int], presence: float, frequency: float
) -> None:
    """Subtract `presence` once, and `frequency` for each time, from the ids in `written`."""
    if presence != 0 or frequency != 0:
        counts = Counter(written)
        ids = np.fromiter(counts.keys(), np.intp, len(counts))
        logits[ids] -= presence + frequency * np.fromiter(counts.values(), np.float32, len(counts))


def penalize_continued_repetition(
    logits: Logits,
    seen: Sequence[int],
    *,
    multiplier: float,
    base: float,
    allowed_length: int,
    breaks: Callable[[int], bool],
) -> None:
    """Subtract from each id that would go on with a repetition, more for a longer one (DRY).

    Where the latest `n` of `seen` stood before, and `n >= allowed_length`, the id that followed
    there loses `multiplier * base ** (n - allowed_length)`.

    Args:
        breaks: whether an id ends repetitions; none goes across it, and it loses nothing.
    """
    ids = np.array(seen, np.intp)
    limit = next((n for n, token in enumerate(reversed(seen)) if breaks(token)), ids.size)
    # Where the latest token stood before; then where the latest two did, and so on.
    places = np.flatnonzero(ids[:-1] == ids[-1]) if ids.size else ids
    lengths: dict[int, int] = {}
    length = 1
    while places.size and length <= limit:
        if length >= allowed_length:
            lengths |= dict.fromkeys(ids[places + 1].tolist(), length)
        places = places[places >= length]
        length += 1
        places = places[ids[places - length + 1] == ids[-length]]
    for token, repeated in lengths.items():
        if not breaks(token):
            exponent = min(repeated - allowed_length, _MAX_LOG / max(np.log(base), _TINY))
            logits[token] -= multiplier * base**exponent


def candidates(
    logits: Logits, *, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[Ids | None, Probabilities]:
    """The ids that may be drawn (None: all, in order), and their probabilities, which sum to 1.

    Tokens that tie with the last one that top-k keeps are kept too, as transformers does.

    Raises:
        EngineError: the logits hold NaN.
        InvalidOption: every logit is -inf.
    """
    highest = float(logits.max())
    _check_finite(highest)
    ids: Ids | None = None
    if 0 < top_k < logits.size:
        ids = np.flatnonzero(logits >= np.partition(logits, -top_k)[-top_k])
        logits = logits[ids]
    weights = _softmax(logits, highest, temperature)
    if top_p < 1:
        kept = _nucleus(weights, top_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    if min_p > 0:
        kept = np.flatnonzero(weights >= min_p * weights.max())
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    return ids, weights / weights.sum()


def draw(probabilities: Probabilities, random: np.random.Generator) -> int:
    """A place in `probabilities`, by its probability."""
    # A running sum over a whole vocabulary takes milliseconds; over blocks it takes a few
    # microseconds, and then one over the block that was drawn.
    starts = np.arange(0, probabilities.size, _BLOCK)
    blocks = np.add.reduceat(probabilities, starts).astype(np.float64).cumsum()
    target = random.random() * blocks[-1]
    block = _place(blocks, target)
    start = int(starts[block])
    within = probabilities[start : start + _BLOCK].astype(np.float64).cumsum()
    return start + _place(within, target - (float(blocks[block - 1]) if block else 0.0))


def log_probability(logits: Logits, token: int) -> float:
    """Natural logarithm of the probability that the unchanged logits give `token`."""
    shifted = logits - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted, dtype=np.float64).sum()))


def top_log_probabilities(logits: Logits, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest ids and what `log_probability` says of them, the best first."""
    if count == 0:
        return ()
    count = min(count, logits.size)
    ids = np.argpartition(logits, -count)[-count:]
    order = ids[np.argsort(-logits[ids], kind="stable")]
    shifted = logits - logits.max()
    norm = np.log(np.exp(shifted, dtype=np.float64).sum())
    return tuple((int(token), float(shifted[token] - norm)) for token in order)


def _softmax(logits: Logits, highest: float, temperature: float) -> Probabilities:
    # As small as float32 can divide by; it leaves only the likeliest.
    weights = np.exp((logits - np.float32(highest)) / np.float32(max(temperature, 1e-30)))
    return np.asarray(weights / weights.sum())


def _nucleus(weights: Probabilities, top_p: float) -> Ids:
    """The fewest likeliest that reach `top_p` together, likeliest first."""
    if weights.size > _HEAD:
        head = np.argpartition(weights, -_HEAD)[-_HEAD:]
        if weights[head].sum() > top_p:
            return np.asarray(head[_nucleus(weights[head], top_p)])
    order = np.argsort(-weights, kind="stable")
    before = np.cumsum(weights[order], dtype=np.float64) - weights[order]
    return np.asarray(order[: max(1, int(np.count_nonzero(before < top_p)))])


def _place(cumulative: npt.NDArray[np.float64], target: float) -> int:
    # Rounding may leave the sum just short of the target; the last that adds to it takes that.
    place = int(cumulative.searchsorted(target, side="right"))
    return place if place < cumulative.size else int(cumulative.argmax())


def _windowed(
    prompt: Sequence[int], answer: Sequence[int], window: int | None
) -> tuple[Sequence[int], Sequence[int]]:
    """The latest `window` ids of both together, and those of them that the answer has."""
    if window is None:
        return [*prompt, *answer], answer
    written = answer[-window:]
    missing = window - len(written)
    return [*(prompt[-missing:] if missing else ()), *written], written


def _check_finite(highest: float) -> None:
    if highest == -np.inf:
        raise InvalidOption("logit_bias forbids every token.", hint="Allow at least one.")
    if not np.isfinite(highest):
        raise EngineError(
            "The model gave logits that are not numbers.",
            hint="The model file may be damaged: check it with edgesdk verify.",
        )
