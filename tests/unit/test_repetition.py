"""Answers that go in a cycle are ended, and those that repeat for a reason are not."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from edgesdk.errors import EngineError
from edgesdk.generation.loop import Generation, Step, generate
from edgesdk.generation.repetition import MAX_PERIOD, RepetitionFinder
from edgesdk.options import Options
from edgesdk.reply import Reply
from edgesdk.tools.calls import has_begun_calls
from tests.support.fake_engine import OPEN, ByteTokenizer, FakeDecodeState, FakeEngine, fake_model

PROMPT = [*b"Say it.", OPEN]


def _words(text: str) -> list[bytes]:
    """Tokens as a tokenizer makes them: a word with the space before it, a sign, a digit."""
    tokens: list[bytes] = []
    for character in text:
        joins = tokens and character.isalpha() and tokens[-1][-1:].isalpha()
        after_space = tokens and character.isalpha() and tokens[-1] == b" "
        if joins or after_space:
            tokens[-1] += character.encode()
        else:
            tokens.append(character.encode())
    return tokens


def _ended(text: str, **settings: object) -> str | None:
    """What is left of an answer that was ended for going in a cycle; None where it was not."""
    texts = _words(text)
    vocabulary = sorted(set(texts))
    finder = RepetitionFinder(vocabulary.__getitem__, **settings)  # type: ignore[arg-type]
    for number, token in enumerate(texts, 1):
        if finder.update(vocabulary.index(token)):
            return b"".join(texts[: number - finder.held]).decode()
    return None


def _respond(answer: str, prompt: str = "Go on.", **options: object) -> Reply:
    model = fake_model(FakeEngine(answer.encode()))
    stream = model.stream(prompt, **options)  # type: ignore[arg-type]
    shown = "".join(stream)
    assert shown == stream.reply.text
    assert stream.reply.finish_reason == stream.reply.receipt.finish_reason
    return stream.reply


@pytest.mark.parametrize(
    ("prefix", "turn"),
    [
        ("", "!"),
        ("Well", "\n"),
        ("La France est ", "la Femme, "),
        ("Paris. ", "It is a city. "),
        ("Rome fell slowly.\n\n", "The empire was large and diverse, and the empire was old.\n\n"),
        ("从前，", "有一座山。"),
        ("Yes", " 😀"),
    ],
)
def test_one_turn_of_a_cycle_is_left(prefix: str, turn: str) -> None:
    reply = _respond(prefix + turn * 400)

    assert reply.finish_reason == "repetition"
    assert reply.text.rstrip() == (prefix + turn).rstrip()
    assert bytes(reply.tokens) == reply.text.encode()
    assert reply.receipt.output_tokens == len(reply.tokens)


def test_a_long_turn_is_found_after_three() -> None:
    chance = random.Random(1)
    turn = " ".join(chance.choice(["sea", "sun", "rain", "wind", "ice"]) for _ in range(90)) + ". "

    assert _ended(turn * 4) == turn.rstrip() or _ended(turn * 4) == turn
    assert _ended(turn * 2) is None


def test_a_turn_that_begins_within_a_sentence_ends_with_it() -> None:
    text = "I like warm tea. You like warm tea. " + "They all like warm tea. " * 60

    left = _ended(text)

    assert left is not None
    assert left.strip() == "I like warm tea. You like warm tea. They all like warm tea."


def test_the_first_word_of_an_answer_is_the_same_word_with_a_space_before_it() -> None:
    assert (_ended("Hello world." + " Hello world." * 60) or "").strip() == "Hello world."


def test_turns_that_differ_in_a_word_are_found() -> None:
    names = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"]
    text = "".join(
        f"The {name} year you take out the interest is the year in which there is no money left"
        " to take the interest out of the bank.\n\n"
        for name in (names * 3)
    )

    left = _ended(text)

    assert left is not None
    assert left.rstrip().endswith(".")
    assert len(left) < len(text) * 0.75


def test_an_answer_that_repeats_itself_only_now_and_then_goes_on() -> None:
    chance = random.Random(2)
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("ain", "or", "elt", "un")]
    refrain = "And so the river runs along, the river runs and sings its song.\n" * 2
    verses = [
        "".join(" " + chance.choice(words) for _ in range(40)) + ".\n" + refrain for _ in range(9)
    ]

    assert _ended("".join(verses)) is None


ROWS = "".join(f"| {name} | 0 | 0 | 0 |\n" for name in ["a"] * 20)
SOUND = {
    "a matrix": "[" + ", ".join(["0"] * 120) + "]",
    "a board": "```python\nboard = [\n" + "    [0, 0, 0, 0, 0, 0, 0, 0],\n" * 12 + "]\n```\n",
    "an empty table": "| a | b | c |\n|---|---|---|\n" + "|   |   |   |\n" * 20,
    "equal rows": "Here it is:\n\n" + ROWS,
    "equal records": "Sure:\n[\n" + '  {"name": "", "age": 0},\n' * 18 + "]",
    "rows of numbers": "0 0 0 0 0 0 0 0\n" * 12,
    "code without a fence": "    print(0)\n" * 30,
    "statements": "move();\n" * 60,
    "counting": ", ".join(map(str, range(1, 200))),
    "a table of products": "".join(f"7 x {n} = {7 * n}\n" for n in range(1, 60)),
    "days": "".join(f"Day {n}: walk for thirty minutes.\n" for n in range(1, 31)),
    "a line": "=" * 80,
    "the alphabet": " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ") + "\n" + "a b c d e f g\n" * 3,
    "laughter": "Ha" + " ha" * 40 + "!",
}


@pytest.mark.parametrize("text", SOUND.values(), ids=SOUND.keys())
def test_what_repeats_for_a_reason_goes_on(text: str) -> None:
    assert _ended(text) is None


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("Write hello 200 times.", "hello " * 200),
        ("Write the alphabet 6 times.", (" ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ") + "\n") * 6),
        ("Repeat 'I am here' as often as you can.", "I am here. " * 90),
        ("Say yes a hundred times.", "Yes. " * 100),
        ("Write 'I talk too much' on 60 lines.", "I talk too much\n" * 60),
        ("Draw a line of 200 stars.", "*" * 200),
        ("Schreibe Hallo 150 mal.", "Hallo " * 150),
        ("Écris bonjour 150 fois.", "bonjour " * 150),
        ("写150次你好。", "你好。" * 150),
        ("Correct the spelling: " + "row row row your boat " * 40, "row row row your boat " * 40),
    ],
)
def test_repetition_that_was_asked_for_goes_on(question: str, text: str) -> None:
    assert _ended(text, question=question) is None


def test_repetition_that_was_asked_for_ends_some_time() -> None:
    reply = _respond("hello " * 600, "Write hello 50 times.")

    assert reply.finish_reason == "repetition"
    assert 50 <= reply.text.count("hello") < 200


@pytest.mark.parametrize("question", ["How many people live in New York?", "In 1998, what was?"])
def test_a_question_with_a_number_asks_for_no_repetition(question: str) -> None:
    assert _ended("It is a city. " * 100, question=question) is not None


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "plot", "arguments": {"rows": [' + "0, " * 900,
        '{"name": "say", "parameters": {"text": "' + "la la " * 900,
    ],
)
def test_a_call_is_never_ended(text: str) -> None:
    assert _ended(text, is_call=has_begun_calls) is None
    assert _ended("It is a city. " * 100, is_call=has_begun_calls) is not None


def test_code_that_never_ends_is_ended_after_more_turns() -> None:
    reply = _respond("```python\n" + "x = x + 1\n" * 400)

    assert reply.finish_reason == "repetition"
    assert reply.text == "```python\n" + "x = x + 1\n" * 2


def test_a_period_longer_than_the_longest_is_left_alone() -> None:
    chance = random.Random(3)
    turn = [chance.randrange(10_000) for _ in range(MAX_PERIOD + 1)]
    finder = RepetitionFinder(lambda token: b" %d" % token)

    assert not any(finder.update(token) for token in turn * 4)


def test_the_option_turns_it_off() -> None:
    reply = _respond("la Femme, " * 100, stop_on_repetition=False)

    assert reply.finish_reason == "stop"
    assert reply.text == "la Femme, " * 100


def test_an_answer_with_an_output_format_never_ends_so() -> None:
    pytest.importorskip("llguidance")
    reply = _respond("a" * 500, regex="a{500}")

    assert (reply.finish_reason, reply.parsed) == ("stop", "a" * 500)


def _generation(
    answer: bytes, state: FakeDecodeState | None = None, **options: object
) -> Generation:
    engine = FakeEngine(answer)
    return generate(
        state or engine.new_state(),
        PROMPT,
        ByteTokenizer(),
        Options(**options),  # type: ignore[arg-type]
        info=engine.info,
        logprobs=True,
        repetition=RepetitionFinder(ByteTokenizer().token_bytes),
    )


def _tokens(steps: Sequence[Step]) -> list[int]:
    return [step.token for step in steps if step.token is not None]


def test_log_probabilities_and_the_decode_state_have_what_is_left() -> None:
    engine = FakeEngine()
    state = engine.new_state()
    generation = _generation(b"Paris, " + b"la Femme, " * 100)
    state = generation._state  # type: ignore[assignment]

    steps = list(generation)

    assert generation.finish is not None
    assert bytes(_tokens(steps)) == b"Paris, la Femme"
    assert generation.finish.tokens == tuple(b"Paris, la Femme")
    assert state.tokens == (*PROMPT, *b"Paris, la Femme")
    # The steps that were cut took their time all the same.
    assert generation.finish.decode_steps > len(generation.finish.tokens)


def test_what_may_be_a_turn_waits_until_it_is_none() -> None:
    steps = iter(_generation(b"abcd, abcd. Then more."))

    shown = [next(steps).text for _ in range(6)]
    assert "".join(shown) == "abcd, "
    assert "".join(step.text for step in steps) == "abcd. Then more."


@pytest.mark.parametrize("max_tokens", [2, 7, 60, 100])
def test_what_waits_comes_out_when_the_tokens_run_out(max_tokens: int) -> None:
    generation = _generation(b"ab" * 60, max_tokens=max_tokens)

    assert bytes(_tokens(list(generation))) == (b"ab" * 60)[:max_tokens]
    assert generation.finish is not None
    assert generation.finish.reason == "length"


def test_what_waits_comes_out_at_a_stop_text() -> None:
    generation = _generation(b"one, one, one, STOP", stop="STOP")

    assert "".join(step.text for step in generation) == "one, one, one, "


def test_an_answer_that_is_closed_has_the_tokens_that_were_shown() -> None:
    generation = _generation(b"ab" * 60)
    assert next(generation).text == "a"
    assert next(generation).text == "b"

    generation.close()

    assert generation.finish is not None
    assert (generation.finish.reason, generation.finish.tokens) == ("cancelled", (*b"ab",))


def test_what_waits_comes_out_before_a_failure() -> None:
    def fail(state: FakeDecodeState) -> None:
        if len(state.extended) > 5:
            raise EngineError("The device is gone.")

    model = fake_model(FakeEngine(b"abababab", before_extend=fail))
    stream = model.stream("Hi")

    assert "".join(next(stream) for _ in range(6)) == "ababab"
    with pytest.raises(EngineError):
        next(stream)


def test_a_stop_text_that_could_begin_within_the_turn_does_not_lose_text() -> None:
    generation = _generation(b"x" + b"la Femme, " * 60, stop=", lb")

    assert "".join(step.text for step in generation) == "xla Femme, "


def test_a_chat_goes_on_from_the_turn_that_is_left() -> None:
    engine = FakeEngine(b"It is a city. " * 60)
    with fake_model(engine).chat() as chat:
        first = chat.respond("What is Paris?")
        assert (first.finish_reason, first.text) == ("repetition", "It is a city. ")
        assert chat.messages[-1] == {"role": "assistant", "content": "It is a city. "}

        second = chat.respond("And Rome?")

    assert second.receipt.cached_tokens > len(first.tokens)
