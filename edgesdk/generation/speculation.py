"""Speculative decoding: a drafter guesses tokens, and one call of the model verifies several.

Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318. Every drafter here
drafts definite tokens: its distribution is a point mass. Speculative sampling then is to accept a
drafted x with the probability p(x) that the model gives it, and otherwise to sample from the rest
of p; to draw from p, and to accept x if that is what was drawn, is the same. So the loop's own
sampler chooses at each verified position. One random number for each token of the answer makes
the outcome that of the plain loop for the same seed.

Prompt lookup: Saxena 2023; "assisted generation by n-grams" in transformers.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from edgesdk.engines.base import DecodeState, Engine, Logits, Rows
from edgesdk.errors import InvalidOption
from edgesdk.generation.batched_verification import MAX_VERIFIED, BatchedVerification, RecentLogits
from edgesdk.generation.prefill import prefill
from edgesdk.text.tokenizer import Tokenizer

MAX_DRAFTED = MAX_VERIFIED - 1

# The first guesses, before anything is measured: just enough hope for a short, cheap try.
_SLOPE = 0.4
_ACCEPTED, _REJECTED = 2.0, 1.0
# Where guesses can be watched, some must have been right before the first draft.
_OBSERVED_ACCEPTED, _OBSERVED_REJECTED = 1.0, 3.0
# Weight of the past against one more round.
_DECAY = 0.8
# Measurements that count: enough for a median that a busy machine does not sway.
_NUM_MEASUREMENTS = 9
# Measurements err, and a draft that fails costs more than one that is left out loses.
_MIN_GAIN = 1.15
_FIRST_PAUSE, _MAX_PAUSE = 16, 512
# Shorter keys match by chance too often in free text.
_KEY_LENGTH = 3


class Drafter(Protocol):
    """Guesses how a text goes on.

    Attributes:
        free: a guess costs next to nothing, so there may be one at every step.
    """

    free: bool

    def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
        """At most `max_tokens` ids that may follow `tokens`; none if there is no good guess.

        Within one answer `tokens` only ever grows.
        """

    def close(self) -> None:
        """Free what it holds."""


class Speculator:
    """Decides for one answer when to draft, and how much.

    Args:
        prompt: ids before the answer.
        check: draft only where the engine is known to compute the same logits together as one by
            one, so that the answer is certainly the plain loop's; None where that does not matter.

    Attributes:
        logits_mode: what the decode state is to be asked for when it verifies a draft.
        draft_length: how much to draft.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        drafter: Drafter,
        check: BatchedVerification | None,
        draft_length: AdaptiveDraftLength,
    ) -> None:
        self._drafter = drafter
        self._check = check
        self._draft_length = draft_length
        self.logits_mode: Rows = "all" if check is None else "each"
        self._recent = RecentLogits()
        self._tokens = list(prompt)
        self._begun = 0.0
        # What a free drafter thinks of the next token, while plain steps are taken.
        self._guess: int | None = None
        self.drafted = 0
        self.accepted = 0

    def draft(self, state: DecodeState, last: int, max_tokens: int) -> list[int]:
        """Tokens to verify after `last`, at most `max_tokens`; none where a plain step is better.

        Args:
            state: holds all before `last`.
        """
        self._begun = perf_counter()
        self._tokens.append(last)
        if self._check is not None and self._check.refuted:
            return []
        if self._guess is not None:
            self._draft_length.record_guess(self._guess == last)
            self._guess = None
        length = self._draft_length.length(min(max_tokens, MAX_DRAFTED))
        if length == 0 and not self._drafter.free:
            return []
        proposed = self._drafter.propose(self._tokens, max(length, 1))
        if length and proposed and self._lossless(state):
            return proposed[:length]
        if proposed and self._drafter.free:
            self._guess = proposed[0]
        return []

    def record_step(self, row: Logits) -> None:
        """A step without a draft gave `row`, float32 [vocab]."""
        self._draft_length.record_plain_step(perf_counter() - self._begun)
        if self._check is not None and self._check.verdict(len(self._tokens)) is None:
            self._recent.add(row)
        else:
            self._recent.clear()

    def record_verified(self, drafted: int, right: list[int]) -> None:
        """Of a draft of `drafted` tokens, `right` were accepted."""
        self._draft_length.record_draft(drafted, len(right), perf_counter() - self._begun)
        self._recent.clear()
        self._tokens += right
        self.drafted += drafted
        self.accepted += len(right)

    def close(self) -> None:
        """Free the drafter."""
        self._drafter.close()

    def _lossless(self, state: DecodeState) -> bool:
        if self._check is None:
            return True
        held = len(self._tokens) - 1
        if self._check.verdict(held) is None and self._recent.full:
            self._check.measure(state, self._tokens[:held], self._recent)
            self._begun = perf_counter()
        return self._check.allows(held)


class VerificationCosts:
    """What verification costs on one engine, learned by all of its answers."""

    def __init__(self) -> None:
        self._slopes: deque[float] = deque(maxlen=_NUM_MEASUREMENTS)

    @property
    def slope(self) -> float:
        """Plain steps for each drafted token."""
        # A copy, because other answers measure meanwhile.
        slopes = tuple(self._slopes)
        return statistics.median(slopes) if slopes else _SLOPE

    def add(self, slope: float) -> None:
        """One more measurement."""
        self._slopes.append(slope)

    def forget_oldest(self) -> None:
        """Nothing was drafted for long: forget the oldest measurement, if there is one."""
        if self._slopes:
            self._slopes.popleft()


class AdaptiveDraftLength:
    """The length that promises the most tokens per second; 0 where none promises a gain.

    Leviathan et al. 2023, arXiv:2211.17192, section 3: where each drafted token is accepted with
    probability a, n of them bring (1 - a^(n+1)) / (1 - a) tokens. Their verification is taken to
    cost 1 + slope * n plain steps. a is measured for each answer, slope for all of them. After a
    pause, twice as long each time, drafting is tried again.

    Args:
        observes_guesses: `record_guess` is told of guesses at plain steps too, so there is no need
            to draft in order to learn a.
    """

    def __init__(self, costs: VerificationCosts, *, observes_guesses: bool = False) -> None:
        self._costs = costs
        self._observes_guesses = observes_guesses
        self._prior = (
            (_OBSERVED_ACCEPTED, _OBSERVED_REJECTED) if observes_guesses else (_ACCEPTED, _REJECTED)
        )
        self._accepted, self._rejected = self._prior
        self._settled = False
        self._plain_seconds: float | None = None
        self._pause = _FIRST_PAUSE
        self._waiting = 0

    def length(self, max_tokens: int) -> int:
        """How many tokens to draft now, at most `max_tokens`. Ask once for each step."""
        if self._waiting:
            self._waiting -= 1
            return 0
        if max_tokens < 1 or self._plain_seconds is None:
            return 0
        rate = self._accepted / (self._accepted + self._rejected)
        slope = self._costs.slope
        best, gain = 0, _MIN_GAIN
        tokens = power = 1.0
        for length in range(1, max_tokens + 1):
            power *= rate
            tokens += power
            promised = tokens / (1 + slope * length)
            if promised > gain:
                best, gain = length, promised
        hopeless = (1 + max_tokens) / (1 + slope * max_tokens) <= _MIN_GAIN
        if best == 0 and (hopeless or not self._observes_guesses):
            self._pause_drafting()
        return best

    def record_plain_step(self, seconds: float) -> None:
        """A step without a draft took this long."""
        known = self._plain_seconds
        self._plain_seconds = seconds if known is None else _DECAY * known + (1 - _DECAY) * seconds

    def record_guess(self, right: bool) -> None:
        """A guess that was not verified turned out to be right or wrong."""
        self._accepted = _DECAY * self._accepted + right
        self._rejected = _DECAY * self._rejected + (not right)

    def record_draft(self, proposed: int, accepted: int, seconds: float) -> None:
        """A step with a draft took this long, the drafting and the way back counted."""
        # The first draft also pays for an index, or for a draft model's prefill.
        if self._settled and self._plain_seconds:
            self._costs.add(max(seconds / self._plain_seconds - 1, 0.0) / proposed)
        self._settled = True
        self._accepted = _DECAY * self._accepted + accepted
        self._rejected = _DECAY * self._rejected + (accepted < proposed)
        if accepted == proposed:
            self._pause = _FIRST_PAUSE

    def _pause_drafting(self) -> None:
        self._waiting = self._pause
        self._pause = min(2 * self._pause, _MAX_PAUSE)
        self._accepted, self._rejected = self._prior
        self._costs.forget_oldest()


class PromptLookupDrafter:
    """Implements `Drafter` with the text's own past. One token costs about a microsecond."""

    free = True

    def __init__(self) -> None:
        self._indexed = _KEY_LENGTH
        self._after: dict[tuple[int, ...], int] = {}
        self._cursor: int | None = None
        self._read = 0

    def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
        self._follow(tokens)
        end = len(tokens)
        # The last key is left out: it would find itself.
        for place in range(self._indexed, end):
            self._after[tuple(tokens[place - _KEY_LENGTH : place])] = place
        self._indexed = max(end, _KEY_LENGTH)
        if self._cursor is None and end >= _KEY_LENGTH:
            self._cursor = self._after.get(tuple(tokens[end - _KEY_LENGTH :]))
        if self._cursor is None:
            return []
        return list(tokens[self._cursor : self._cursor + max_tokens])

    def close(self) -> None:
        pass

    def _follow(self, tokens: Sequence[int]) -> None:
        """Move the cursor along a copy that goes on: the latest match of three tokens may lie
        elsewhere, where they are common."""
        for place in range(self._read, len(tokens)):
            if self._cursor is not None:
                same = tokens[self._cursor] == tokens[place]
                self._cursor = self._cursor + 1 if same else None
        self._read = len(tokens)


@dataclass(frozen=True)
class LoadedDraftModel:
    """A loaded draft model.

    Attributes:
        vocab_size: ids that the target's tokenizer has; models pad their logits beyond them.
        costs: of a draft and its verification together.
    """

    engine: Engine
    vocab_size: int
    costs: VerificationCosts = field(default_factory=VerificationCosts)

    def drafter(self, scheduled: Callable[[DecodeState], DecodeState]) -> ModelDrafter:
        """A drafter for one answer; see `ModelDrafter`."""
        return ModelDrafter(self.engine, self.vocab_size, scheduled)

    def close(self) -> None:
        """Free the model."""
        self.engine.close()


class ModelDrafter:
    """Implements `Drafter` with the likeliest tokens of a draft model.

    Args:
        scheduled: wraps a decode state so that its calls take turns, and can be cancelled.
    """

    free = False

    def __init__(
        self,
        engine: Engine,
        vocab_size: int,
        scheduled: Callable[[DecodeState], DecodeState] = lambda state: state,
    ) -> None:
        self._engine = engine
        self._scheduled = scheduled
        self._vocab_size = vocab_size
        self._state: DecodeState | None = None
        # What the text was at the last call, and how many of its guesses the cache holds as well.
        self._known = 0
        self._guessed: list[int] = []

    def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
        if len(tokens) + max_tokens > self._engine.info.context_length:
            return []
        if self._state is None:
            self._state = self._scheduled(self._engine.new_state())
        state = self._state
        kept = self._known
        for guess in self._guessed:
            # The last token of the text is always computed, because its logits are wanted.
            if kept >= len(tokens) - 1 or tokens[kept] != guess:
                break
            kept += 1
        state.rewind(kept)
        self._known, self._guessed = kept, []
        row = prefill(state, tokens[kept:])[0]
        self._known = len(tokens)
        proposed = [int(row[: self._vocab_size].argmax())]
        while len(proposed) < max_tokens:
            row = state.extend(proposed[-1:])[0]
            self._guessed.append(proposed[-1])
            proposed.append(int(row[: self._vocab_size].argmax()))
        return proposed

    def close(self) -> None:
        if self._state is not None:
            self._state.close()
            self._state = None


def check_same_tokens(target: Tokenizer, draft: Tokenizer, *, name: str) -> None:
    """Raise unless both tokenizers mean the same by every id.

    Args:
        name: of the draft model, for the message.

    Raises:
        InvalidOption: they do not.
    """
    where = None
    if target.vocab_size != draft.vocab_size:
        where = f"{target.vocab_size:,} tokens against {draft.vocab_size:,}"
    else:
        for token in range(target.vocab_size):
            if target.token_bytes(token) != draft.token_bytes(token):
                where = f"token {token} is another"
                break
    if where is not None:
        raise InvalidOption(
            f"{name} has another tokenizer than the model that it is to draft for: {where}.",
            hint="Take a smaller model of the same family.",
        )
