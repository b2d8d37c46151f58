"""Reasoning and answer are told apart, however the text is cut."""

from __future__ import annotations

import random

import pytest

from edgesdk.generation.reasoning_reader import ReasoningReader
from edgesdk.text.reasoning_format import MARKS, ReasoningMarks

THINK = ReasoningMarks("<think>", "</think>")
(HARMONY,) = [marks for marks in MARKS if marks.opening.startswith("<|channel|>analysis")]
(GRANITE,) = [marks for marks in MARKS if marks.headers == ("<response>",)]

# Marks, whether the prompt opened the reasoning, the text, its reasoning and its answer.
CASES = [
    (THINK, False, "<think>\nHm, 2.\n</think>\n\nTwo.", "Hm, 2.", "Two."),
    (THINK, False, "\n<think>Hm</think>Two.\n", "Hm", "Two.\n"),
    (THINK, True, "\nHm, 2.\n</think>\n\nTwo.", "Hm, 2.", "Two."),
    (THINK, True, "<think>\nHm</think>Two.", "Hm", "Two."),
    (THINK, False, "<think>\n\n</think>\n\nTwo.", "", "Two."),
    (THINK, True, "\n</think>\n\n    indented", "", "    indented"),
    (THINK, False, "<think>a</think>\n<think>b</think>c", "ab", "c"),
    # Nothing is lost of an answer that only looks like reasoning.
    (THINK, False, "Two.", "", "Two."),
    (THINK, False, "  <b>bold</b>", "", "  <b>bold</b>"),
    (THINK, False, "The tag <think> opens, </think> closes.", "",
     "The tag <think> opens, </think> closes."),
    (THINK, False, "<thi", "", "<thi"),
    (THINK, False, "\n\n", "", "\n\n"),
    # It ends in the reasoning.
    (THINK, False, "<think>Hm, a </thin", "Hm, a </thin", ""),
    (THINK, True, "Hm \n", "Hm", ""),
    (THINK, True, "a < b and c </ d", "a < b and c </ d", ""),
    (
        HARMONY,
        False,
        "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Two.",
        "Hm",
        "Two.",
    ),
    (HARMONY, False, "<|channel|>final<|message|>Two.", "", "Two."),
    (
        HARMONY,
        False,
        "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant to=functions.f<|channel|>"
        "commentary json<|message|>{}",
        "Hm",
        " to=functions.f<|channel|>commentary json<|message|>{}",
    ),
    (GRANITE, False, "<think>Hm</think><response>Two.</response>", "Hm", "Two."),
    (None, False, "<think>Hm</think>Two.", "", "<think>Hm</think>Two."),
]  # fmt: skip


def read(reader: ReasoningReader, pieces: list[str]) -> tuple[str, str]:
    found = [*map(reader.feed, pieces), reader.flush()]
    return "".join(part.reasoning for part in found), "".join(part.answer for part in found)


@pytest.mark.parametrize(("marks", "inside", "text", "reasoning", "answer"), CASES)
def test_a_whole_text_and_a_stream_of_it_are_read_alike(
    marks: ReasoningMarks | None, inside: bool, text: str, reasoning: str, answer: str
) -> None:
    assert read(ReasoningReader(marks, inside=inside), [text]) == (reasoning, answer)
    letters = ReasoningReader(marks, inside=inside)
    assert read(letters, list(text)) == (reasoning, answer)
    assert read(letters.restarted(), [text]) == (reasoning, answer)
    for seed in range(20):
        cuts = sorted(random.Random(seed).choices(range(len(text) + 1), k=4))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert read(ReasoningReader(marks, inside=inside), pieces) == (reasoning, answer), pieces


@pytest.mark.parametrize("marks", MARKS, ids=lambda marks: marks.opening.strip())
def test_no_family_shows_a_part_of_a_mark(marks: ReasoningMarks) -> None:
    text = f"{marks.opening}Hm{marks.closing}{''.join(marks.headers)}Two.{marks.ending}"
    assert read(ReasoningReader(marks), list(text)) == ("Hm", "Two.")
    assert marks.is_open(f"assistant\n{marks.opening}")
    assert not marks.is_open(f"assistant\n{marks.opening}{marks.closing}")


def test_tokens_of_reasoning_are_counted_with_their_marks() -> None:
    reader = ReasoningReader(THINK)
    for token in ("<", "think", ">", "\n", "Hm", "</", "think", ">", "\n\n"):
        reader.feed(token)
    assert (reader.tokens, reader.reasons, reader.answers) == (8, False, False)
    reader.feed("Two")
    assert (reader.tokens, reader.answers) == (8, True)


def test_what_only_began_like_a_mark_is_not_counted() -> None:
    reader = ReasoningReader(THINK)
    for token in ("<", "b", ">"):
        reader.feed(token)
    assert reader.tokens == 0


def test_the_time_is_from_the_first_token_to_the_last() -> None:
    reader = ReasoningReader(THINK, inside=True)
    for place, token in enumerate(("a", "b", "</think>", "c")):
        reader.feed(token, (10.0 + place, 10.5 + place))
    assert reader.seconds == 2.5
