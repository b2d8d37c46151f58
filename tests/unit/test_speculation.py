"""Speculation gives the same answers in fewer calls, by any drafter and on any kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.engines.base import HiddenStates, Logits, Rows
from edgesdk.errors import InvalidOption
from edgesdk.generation.loop import Generation, StepCallback, generate
from edgesdk.generation.speculation import (
    AdaptiveDraftLength,
    Drafter,
    LoadedDraftModel,
    ModelDrafter,
    PromptLookupDrafter,
    Speculator,
    VerificationCosts,
    check_same_tokens,
)
from edgesdk.options import Options
from edgesdk.runtime import Runtime
from edgesdk.system.cancellation import CancellationToken
from edgesdk.text.prompts import PromptEncoder
from tests.support.fake_engine import (
    END,
    OPEN,
    VOCAB,
    ByteTokenizer,
    FakeDecodeState,
    FakeEngine,
    fake_model,
)

PROMPT = [*b"Say it.", OPEN]


class Eager(AdaptiveDraftLength):
    """Always drafts as much as it may."""

    def length(self, max_tokens: int) -> int:
        return max_tokens


class Scripted:
    """Implements `Drafter` with guesses that were written beforehand."""

    free = False

    def __init__(self, guesses: list[list[int]]) -> None:
        self._guesses = list(guesses)

    def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
        return self._guesses.pop() if self._guesses else []

    def close(self) -> None:
        pass


class RandomEngine(FakeEngine):
    """Logits that the last two tokens decide, over few likely tokens and the end."""

    def __init__(self, seed: int, spread: float = 2) -> None:
        super().__init__()
        table = np.random.default_rng(seed).normal(0, spread, (8, 8, 8))
        self._table = table.astype(np.float32)

    def logits(self, tokens: list[int]) -> Logits:
        row = np.full(VOCAB, -50, np.float32)
        row[:8] = self._table[tokens[-2] % 8, tokens[-1] % 8]
        return row[None]


class Rounding(FakeDecodeState):
    """Several rows together come out a last bit apart from one alone."""

    def extend(
        self,
        tokens: npt.ArrayLike,
        *,
        logits: Rows = "last",
        cancellation: CancellationToken | None = None,
    ) -> Logits:
        rows = super().extend(tokens, logits=logits, cancellation=cancellation)
        return rows if np.size(tokens) == 1 else np.nextafter(rows, np.float32(np.inf))

    def fork(self) -> FakeDecodeState:
        twin = Rounding(self._engine)
        twin._tokens = list(self._tokens)
        return twin


class RoundingEngine(FakeEngine):
    def new_state(self) -> FakeDecodeState:
        self.states.append(Rounding(self))
        return self.states[-1]


def _generation(
    engine: FakeEngine,
    options: Options,
    drafter: Drafter | None,
    *,
    logprobs: bool = False,
    on_step: StepCallback | None = None,
) -> Generation:
    return generate(
        engine.new_state(),
        PROMPT,
        ByteTokenizer(),
        options,
        info=engine.info,
        logprobs=logprobs,
        speculator=None
        if drafter is None
        else Speculator(PROMPT, drafter, None, Eager(VerificationCosts())),
        on_step=on_step,
    )


tokens = st.integers(0, 7)
guesses = st.lists(st.lists(tokens, max_size=12), max_size=12)
shapes = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.5]),
        "max_tokens": st.integers(1, 40),
        "stop": st.sampled_from([(), ("\x05\x06",), ("\x01",)]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "frequency_penalty": st.sampled_from([0.0, 0.5]),
        "penalty_window": st.sampled_from([None, 4]),
        "seed": st.integers(0, 5),
    }
)


@given(st.integers(0, 50), guesses, shapes)
def test_no_drafter_changes_an_answer(
    seed: int, script: list[list[int]], shape: dict[str, object]
) -> None:
    engine, options = RandomEngine(seed), Options(**shape)  # type: ignore[arg-type]
    plain = _generation(engine, options, None, logprobs=True)
    drafted = _generation(engine, options, Scripted(script), logprobs=True)

    assert list(drafted) == list(plain)
    assert plain.finish is not None
    assert drafted.finish is not None
    assert drafted.finish.reason == plain.finish.reason
    assert drafted.finish.tokens == plain.finish.tokens
    text = (*PROMPT, *plain.finish.tokens)
    held = engine.states[1].tokens
    assert held == text[: len(held)]
    assert len(held) >= len(text) - 1


@given(st.integers(0, 50), guesses)
def test_what_watches_sees_the_state_behind_each_token(seed: int, script: list[list[int]]) -> None:
    class Counting(RandomEngine):
        """Its states say how many tokens came before."""

        def hidden_state(self, tokens: list[int]) -> HiddenStates:
            return np.array([len(tokens)], np.float32)

    def on_step(row: Logits, token: int, state: HiddenStates | None) -> None:
        assert state is not None
        seen.append((float(state[0]), token))

    engine, options = Counting(seed), Options(max_tokens=30)
    seen: list[tuple[float, int]] = []
    found = _finish_tokens(_generation(engine, options, Scripted(script), on_step=on_step))
    assert seen[: len(found)] == [(len(PROMPT) + at, token) for at, token in enumerate(found)]


@given(st.integers(0, 50))
def test_an_oracle_is_always_right(seed: int) -> None:
    engine, options = RandomEngine(seed), Options(max_tokens=20)
    answer = list(_finish_tokens(_generation(engine, options, None)))

    class Oracle(Scripted):
        def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
            return answer[len(tokens) - len(PROMPT) :][:max_tokens]

    generation = _generation(engine, options, Oracle([]))

    assert list(_finish_tokens(generation)) == answer
    assert generation.finish is not None
    assert generation.finish.accepted_tokens == generation.finish.drafted_tokens
    # 20 tokens: one from the prompt, then 8 by each call.
    if len(answer) == 20:
        assert engine.states[1].extended[1:] == [8, 8, 3]


def test_sampling_with_a_drafter_has_the_models_distribution() -> None:
    """Chi-square of the second and third token, whose guesses are 4 and 5, after each start that
    came often enough; 0.9999 quantile for 7 degrees of freedom: 29.9."""
    engine = RandomEngine(3, spread=0.5)
    counts = np.zeros((9, 9, 8))
    for seed in range(6_000):
        options = Options(max_tokens=3, temperature=1, seed=seed)
        found = _finish_tokens(_generation(engine, options, Scripted([[4, 5]])))
        for place, token in enumerate([*found, END][:3]):
            before = [8, 8, *found[:place]]
            counts[before[-2], before[-1], token] += 1
    tested = 0
    for before in np.ndindex(9, 9):
        row = counts[before]
        if before[1] < 8 and row.sum() > 150:
            held = [OPEN if token == 8 else token for token in before]
            logits = engine.logits(held)[0, :8].astype(np.float64)
            expected = np.exp(logits) / np.exp(logits).sum() * row.sum()
            assert ((row - expected) ** 2 / expected).sum() < 29.9
            tested += 1
    assert counts[8, :, 4].sum() > 500
    assert tested > 5


def _finish_tokens(generation: Generation, length: int | None = None) -> list[int]:
    for _ in generation:
        pass
    assert generation.finish is not None
    found = list(generation.finish.tokens)
    return found if length is None else (found + [0] * length)[:length]


def test_an_answer_that_is_left_among_accepted_tokens_leaves_a_usable_sequence() -> None:
    engine = FakeEngine(b"abcdefgh")
    generation = _generation(engine, Options(), Scripted([list(b"bcdef")]))

    next(generation)
    assert next(generation).text == "b"
    generation.close()

    assert generation.finish is not None
    assert generation.finish.reason == "cancelled"
    assert generation.finish.tokens == tuple(b"ab")
    state = engine.states[0]
    assert state.tokens[: len(PROMPT) + 2] == (*PROMPT, *b"ab")
    again = generate(state, [*PROMPT, *b"abc"], ByteTokenizer(), Options(), info=engine.info)
    assert "".join(step.text for step in again) == "defgh"


COPY = "one two three four five six seven eight nine ten "


def test_a_model_drafts_from_the_text_by_itself() -> None:
    engine = FakeEngine((2 * COPY).encode())

    reply = fake_model(engine).respond("Count twice.", speculate="auto")

    assert reply.text == 2 * COPY
    assert reply.receipt.drafted_tokens >= reply.receipt.accepted_tokens > 0


def test_off_is_the_plain_loop() -> None:
    engine = FakeEngine((2 * COPY).encode())

    reply = fake_model(engine).respond("Count twice.", speculate="off")

    assert reply.receipt.drafted_tokens == 0
    assert set(engine.states[0].extended[1:]) == {1}


def test_where_rows_differ_only_what_is_left_to_chance_is_drafted() -> None:
    def drafted(**options: object) -> int:
        model = fake_model(RoundingEngine((2 * COPY).encode()))
        reply = model.respond("Count twice.", **{"speculate": "auto", **options})  # type: ignore[arg-type]
        assert reply.text == 2 * COPY
        return reply.receipt.drafted_tokens

    assert drafted() == 0
    assert drafted(temperature=0.01, seed=1) == 0
    assert drafted(temperature=0.01) > 0
    assert drafted(speculate="lookup") > 0


def test_a_default_answer_drafts_from_the_text() -> None:
    reply = fake_model(FakeEngine((3 * COPY).encode())).respond("Count.")

    assert reply.text == 3 * COPY
    assert reply.receipt.accepted_tokens > 0


def test_nothing_is_drafted_before_guesses_were_seen_to_be_right() -> None:
    # Three tokens come again and again, and what follows them is always new.
    letters = bytes(range(32, 127))
    text = b"".join(b"\xc3\xa9-" + letters[at : at + 1] for at in range(40))
    engine = FakeEngine(text)

    reply = fake_model(engine).respond("Count.")

    assert reply.receipt.drafted_tokens == 0
    assert set(engine.states[0].extended[1:]) == {1}


def test_an_unknown_way_to_speculate_is_refused() -> None:
    with pytest.raises(InvalidOption, match="auto, lookup, off, not 'on'"):
        Options(speculate="on")  # type: ignore[arg-type]


def _draft_runtime(target: FakeEngine, draft: FakeEngine) -> Runtime:
    encoder = PromptEncoder(ByteTokenizer(), None, None, None)
    return Runtime(target, encoder, 0.0, draft=LoadedDraftModel(draft, vocab_size=VOCAB))


def test_a_draft_model_that_thinks_alike_is_always_right() -> None:
    written = b"Nothing here repeats itself, mind you."
    target, draft = FakeEngine(written), FakeEngine(written)
    options = Options(max_tokens=30)
    plain = _finish_tokens(_generation(target, options, None))
    drafter = ModelDrafter(draft, VOCAB)

    generation = _generation(target, options, drafter)

    assert _finish_tokens(generation) == plain
    assert generation.finish is not None
    assert generation.finish.accepted_tokens == generation.finish.drafted_tokens > 0
    # Nothing is computed twice: the prompt and each token of the answer once.
    assert sum(draft.states[0].extended) <= len(PROMPT) + len(plain)
    assert draft.states[0].closed


@given(st.integers(0, 20), st.integers(0, 20))
def test_a_draft_model_that_thinks_otherwise_changes_nothing(seed: int, other: int) -> None:
    target, draft = RandomEngine(seed), RandomEngine(other)
    options = Options(max_tokens=30)
    plain = _finish_tokens(_generation(target, options, None))

    class Checked(ModelDrafter):
        def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
            found = super().propose(tokens, max_tokens)
            text = list(tokens)
            for token in found:
                assert token == int(draft.logits(text)[0].argmax())
                text.append(token)
            return found

    assert _finish_tokens(_generation(target, options, Checked(draft, VOCAB))) == plain


def test_a_text_too_long_for_the_draft_model_is_not_drafted() -> None:
    draft = FakeEngine(context_length=10)
    assert ModelDrafter(draft, VOCAB).propose(list(range(4, 12)), 3) == []


def test_draft_and_target_must_mean_the_same_tokens() -> None:
    class Other(ByteTokenizer):
        def token_bytes(self, token: int) -> bytes:
            return b"?" if token == 65 else super().token_bytes(token)

    class Larger(ByteTokenizer):
        vocab_size = VOCAB + 1

    check_same_tokens(ByteTokenizer(), ByteTokenizer(), name="small")
    with pytest.raises(InvalidOption, match=r"small has another tokenizer.*token 65 is another"):
        check_same_tokens(ByteTokenizer(), Other(), name="small")
    with pytest.raises(InvalidOption, match="256 tokens against 257"):
        check_same_tokens(ByteTokenizer(), Larger(), name="small")


def test_a_model_with_a_draft_uses_it_and_frees_it() -> None:
    from edgesdk.model import Model

    answer = b"Nothing here repeats itself, mind you."
    closed = []

    class Closing(FakeEngine):
        def close(self) -> None:
            closed.append(self)

    draft = Closing(answer)
    model = Model("fake", _draft_runtime(FakeEngine(answer), draft))

    reply = model.complete("\x02")

    assert reply.text == answer.decode()
    assert reply.receipt.accepted_tokens > 0
    assert draft.states[0].closed
    model.close()
    assert closed == [draft]


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 8))
def test_lookup_gives_what_followed_before(text: list[int], most: int) -> None:
    lookup = PromptLookupDrafter()
    for end in range(len(text) + 1):
        found = lookup.propose(text[:end], most)
        assert len(found) <= most
        if found:
            key = text[end - 3 : end]
            places = [at + 3 for at in range(end - 3) if text[at : at + 3] == key]
            assert found in [text[place : place + len(found)] for place in places]


def test_lookup_finds_each_repetition_of_three_tokens() -> None:
    text = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3]
    assert PromptLookupDrafter().propose(text, 3) == [4, 5, 6]
    assert PromptLookupDrafter().propose(text[:-1], 3) == []


def test_a_copy_is_followed_past_tokens_that_are_common() -> None:
    lookup = PromptLookupDrafter()
    text = [1, 2, 3, 0, 0, 0, 4, 5, 0, 0, 0, 8, 1, 2, 3]
    assert lookup.propose(text, 2) == [0, 0]
    assert lookup.propose([*text, 0, 0, 0], 2) == [4, 5]


def test_the_pace_grows_while_drafts_are_right() -> None:
    pace = AdaptiveDraftLength(VerificationCosts())
    assert pace.length(7) == 0
    pace.record_plain_step(1.0)
    lengths = []
    for _ in range(20):
        lengths.append(pace.length(7))
        pace.record_draft(lengths[-1], lengths[-1], 1 + 0.2 * lengths[-1])
    assert 0 < lengths[0] < lengths[-1] == 7
    assert lengths == sorted(lengths)
    assert pace.length(2) == 2


def test_the_pace_stops_where_drafts_are_wrong_and_tries_ever_more_seldom() -> None:
    pace = AdaptiveDraftLength(VerificationCosts())
    tries = []
    for step in range(2_000):
        length = pace.length(7)
        if length:
            pace.record_draft(length, 0, 1 + 0.2 * length)
            tries.append(step)
        else:
            pace.record_plain_step(1.0)
    assert len(tries) < 30
    assert len([step for step in tries if step > 1_000]) < 8
    assert tries[-1] > 500


def test_the_pace_stops_where_several_tokens_cost_as_much_as_one_by_one() -> None:
    pace = AdaptiveDraftLength(VerificationCosts())
    drafted = 0
    for _ in range(500):
        length = pace.length(7)
        if length:
            pace.record_draft(length, length, 1.0 + length)
            drafted += length
        else:
            pace.record_plain_step(1.0)
    assert 0 < drafted < 250


def test_a_watching_pace_needs_no_draft_to_learn() -> None:
    pace = AdaptiveDraftLength(VerificationCosts(), observes_guesses=True)
    pace.record_plain_step(1.0)
    assert pace.length(7) == 0
    for _ in range(4):
        pace.record_guess(True)
    assert pace.length(7) > 0
    for _ in range(6):
        pace.record_guess(False)
    assert pace.length(7) == 0


def test_what_one_answer_learns_of_the_costs_the_next_one_knows() -> None:
    costs = VerificationCosts()
    first = AdaptiveDraftLength(costs)
    first.record_plain_step(1.0)
    for _ in range(12):
        first.record_draft(4, 4, 1 + 1.2 * 4)
    assert costs.slope == pytest.approx(1.2)
    # One call that another process disturbed changes nothing.
    first.record_draft(4, 4, 100.0)
    assert costs.slope == pytest.approx(1.2)

    second = AdaptiveDraftLength(costs)
    second.record_plain_step(1.0)
    drafted = sum(second.length(7) > 0 for _ in range(60))
    assert drafted == 0
    # An engine that was busy then may be worth a try much later.
    assert sum(second.length(7) > 0 for _ in range(5_000)) > 0
