from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.errors import ContextOverflow, EmptyPrompt, EngineError
from edgesdk.generation.finish import Finish
from edgesdk.generation.loop import Generation, Step, generate
from edgesdk.generation.prefill import PREFILL_CHUNK
from edgesdk.generation.prompt_logprobs import prompt_steps
from edgesdk.generation.sampling import log_probability
from edgesdk.options import Options
from edgesdk.system.cancellation import CancellationToken
from tests.support.fake_engine import OPEN, ByteTokenizer, FakeDecodeState, FakeEngine

PROMPT = [*b"Say it.", OPEN]


def _generation(
    engine: FakeEngine,
    state: FakeDecodeState | None = None,
    *,
    prompt: list[int] = PROMPT,
    cancellation: CancellationToken | None = None,
    logprobs: bool = False,
    **options: object,
) -> Generation:
    return generate(
        state or engine.new_state(),
        prompt,
        ByteTokenizer(),
        Options(**options),  # type: ignore[arg-type]
        info=engine.info,
        cancellation=cancellation,
        logprobs=logprobs,
    )


def _finish(generation: Generation) -> Finish:
    assert generation.finish is not None
    return generation.finish


def _text(steps: list[Step]) -> str:
    return "".join(step.text for step in steps)


def test_an_answer_comes_token_by_token_until_the_model_ends_it() -> None:
    engine = FakeEngine(b"Hi.")
    generation = _generation(engine)

    steps = list(generation)

    assert steps == [Step(token, chr(token), None) for token in b"Hi."]
    finish = _finish(generation)
    assert finish.reason == "stop"
    assert finish.tokens == tuple(b"Hi.")
    assert (finish.prompt_tokens, finish.cached_tokens) == (len(PROMPT), 0)
    assert finish.decode_steps == 3
    assert engine.states[0].tokens == (*PROMPT, *b"Hi.")


@given(st.text(min_size=1).filter(lambda text: not {"\x02", "\x03"} & set(text)))
def test_no_character_is_ever_cut(text: str) -> None:
    steps = list(_generation(FakeEngine(text.encode())))

    assert _text(steps) == text
    assert all(len(step.text) <= 1 for step in steps)


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    assert _text(list(_generation(FakeEngine(b"a\xffb\xe4c")))) == "a\ufffdb\ufffdc"


def test_an_incomplete_character_at_the_end_does_not_show() -> None:
    generation = _generation(FakeEngine("ab€".encode()), max_tokens=4)

    assert _text(list(generation)) == "ab"
    assert _finish(generation).reason == "length"


def test_max_tokens_ends_an_answer() -> None:
    engine = FakeEngine(b"abcdef")
    generation = _generation(engine, max_tokens=2)

    assert _text(list(generation)) == "ab"
    assert _finish(generation).reason == "length"
    assert engine.states[0].tokens == (*PROMPT, *b"a")


def test_a_stop_text_across_tokens_ends_an_answer_and_does_not_show() -> None:
    generation = _generation(FakeEngine(b"one STOP two"), stop="STOP")

    assert _text(list(generation)) == "one "
    assert _finish(generation).reason == "stop"


def test_text_held_back_for_a_stop_text_comes_out_at_the_end() -> None:
    generation = _generation(FakeEngine(b"one ST"), stop="STOP")

    assert _text(list(generation)) == "one ST"


def test_a_full_context_ends_an_answer() -> None:
    engine = FakeEngine(b"abcdef", context_length=len(PROMPT) + 3)
    generation = _generation(engine)

    assert _text(list(generation)) == "abc"
    assert _finish(generation).reason == "length"


def test_a_prompt_that_leaves_no_room_is_refused_before_anything_runs() -> None:
    engine = FakeEngine(context_length=len(PROMPT))

    with pytest.raises(ContextOverflow, match=r"8 tokens; 7 fit.*Take out at least 1") as caught:
        _generation(engine)

    assert (caught.value.tokens, caught.value.limit) == (len(PROMPT), len(PROMPT) - 1)
    assert engine.states[0].extended == []


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(EmptyPrompt):
        _generation(FakeEngine(), prompt=[])


def test_what_the_sequence_holds_is_not_computed_again() -> None:
    engine = FakeEngine(b"Hi.")
    state = engine.new_state()
    state.extend([*PROMPT[:4], *b"other things"])
    state.extended.clear()
    generation = _generation(engine, state)

    assert _text(list(generation)) == "Hi."
    assert _finish(generation).cached_tokens == 4
    assert state.extended[0] == len(PROMPT) - 4


def test_a_prompt_that_is_held_whole_gives_one_token_back_for_its_logits() -> None:
    engine = FakeEngine(b"Hi.")
    state = engine.new_state()
    state.extend(PROMPT)
    state.extended.clear()
    generation = _generation(engine, state)

    assert _text(list(generation)) == "Hi."
    assert _finish(generation).cached_tokens == len(PROMPT) - 1
    assert state.extended[0] == 1


def test_a_long_prompt_goes_in_chunks_and_can_be_cancelled_between_them() -> None:
    cancellation = CancellationToken()

    def cancel_at_third(state: FakeDecodeState) -> None:
        if len(state.extended) == 2:
            cancellation.cancel()

    engine = FakeEngine(before_extend=cancel_at_third)
    prompt = [7] * (PREFILL_CHUNK * 5)
    generation = _generation(engine, prompt=prompt, cancellation=cancellation)

    assert list(generation) == []
    assert engine.states[0].extended == [PREFILL_CHUNK] * 3
    finish = _finish(generation)
    assert (finish.reason, finish.tokens, finish.time_to_first_token) == ("cancelled", (), None)
    assert engine.states[0].tokens == tuple(prompt[: 3 * PREFILL_CHUNK])


def test_cancelling_ends_an_answer_before_its_next_token() -> None:
    cancellation = CancellationToken()
    engine = FakeEngine(b"abcdef")
    generation = _generation(engine, cancellation=cancellation)

    next(generation)
    next(generation)
    cancellation.cancel()

    assert list(generation) == []
    assert _finish(generation).reason == "cancelled"
    assert _finish(generation).tokens == tuple(b"ab")
    assert engine.states[0].tokens == (*PROMPT, *b"a")


def test_cancelling_gives_out_what_was_held_back() -> None:
    cancellation = CancellationToken()
    generation = _generation(FakeEngine(b"one STOP"), cancellation=cancellation, stop="STOP")
    shown = "".join(next(generation).text for _ in range(6))
    cancellation.cancel()

    assert (shown, _text(list(generation))) == ("one ", "ST")


def test_closing_ends_an_answer() -> None:
    engine = FakeEngine(b"abcdef")
    generation = _generation(engine)
    next(generation)

    generation.close()
    generation.close()

    assert _finish(generation).reason == "cancelled"
    assert list(generation) == []
    assert engine.states[0].tokens == (*PROMPT,)


@pytest.mark.parametrize("during", ["prefill", "decode"])
def test_a_deadline_ends_an_answer(during: str) -> None:
    def wait(state: FakeDecodeState) -> None:
        if during == "prefill" or state.extended:
            time.sleep(0.02)

    generation = _generation(FakeEngine(b"a" * 1000, before_extend=wait), deadline=0.01)

    steps = list(generation)

    assert _finish(generation).reason == "deadline"
    assert len(steps) == (0 if during == "prefill" else 2)


def test_an_engine_failure_reaches_the_caller() -> None:
    def fail(state: FakeDecodeState) -> None:
        if len(state.extended) == 2:
            raise EngineError("broken")

    generation = _generation(FakeEngine(b"abc", before_extend=fail))

    with pytest.raises(EngineError, match="broken"):
        list(generation)


def test_log_probabilities_are_given_when_asked_for() -> None:
    steps = list(_generation(FakeEngine(b"ab"), logprobs=True))

    # The written token has the weight 1, those after it e^-0.5, e^-1, ...
    assert [step.logprob for step in steps] == [pytest.approx(-0.9327, abs=1e-3)] * 2


def test_penalties_see_the_answer_so_far() -> None:
    generation = _generation(FakeEngine(b"aaa"), presence_penalty=0.6)

    assert _text(list(generation))[:2] == "ab"


def test_tokens_that_end_an_answer() -> None:
    def ended(**options: object) -> tuple[str, str]:
        generation = _generation(FakeEngine(), **options)
        text = "".join(step.text for step in generation)
        return text, _finish(generation).reason

    plain, _ = ended()
    assert ended(min_tokens=len(plain) - 2) == (plain, "stop")
    longer, _ = ended(min_tokens=len(plain) + 3, max_tokens=len(plain) + 9)
    assert len(plain) + 3 <= len(longer.encode())
    assert ended(ignore_eos=True, max_tokens=40)[1] == "length"
    assert ended(stop_token_ids=[ord(plain[3])]) == (plain[: plain.index(plain[3])], "stop")


def test_a_prompt_token_by_token() -> None:
    steps = list(prompt_steps(FakeEngine().new_state(), PROMPT, ByteTokenizer(), logprobs=True))
    assert [step.token for step in steps] == PROMPT
    assert "".join(step.text for step in steps) == "Say it."
    assert steps[0].logprob is None
    # In one piece the engine gives the same.
    logits = FakeEngine().new_state().extend(PROMPT[:-1], logits="all")
    wanted = [log_probability(row, token) for row, token in zip(logits, PROMPT[1:], strict=True)]
    assert [step.logprob for step in steps[1:]] == wanted
