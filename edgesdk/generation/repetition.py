"""Finds an answer that goes in a cycle while it is decoded, so that it can be ended.

A small model that takes the likeliest token each time may write the same tokens over and over until
its context is full (Holtzman et al. 2020, arXiv:1904.09751). For each period up to `MAX_PERIOD` two
numbers are kept, by a few vector operations per token:

- The run: how many of the latest tokens equal the one that stands a period before them. A run of
  some turns is a cycle. Its first turn stays, the rest is cut off.
- The score, for turns that differ in a word: one more for each token that is equal, less for each
  that is not. Such turns were shown before they could be known for a cycle, so they stay, and the
  answer ends with a sentence or a line.

Some answers repeat for a reason, and need more turns before they are ended, or never are:

- Code, tables, JSON and rows of numbers: the zeros of a matrix, a list of equal records. Their text
  is shown as it comes, so that two turns stay.
- Repetition that was asked for ("write hello 50 times"), and text that the prompt repeats itself.
- Calls of tools. An answer with an output format has no finder at all (see `Runtime.generate`).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

MAX_PERIOD = 512

_PERIODS = np.arange(1, MAX_PERIOD + 1)
# Runs that are a cycle: a short turn must cover some lines, a long one come four times, a page
# three times. `benchmarks/quality/loops.py` measures how near answers come that end by themselves.
_RUNS = np.maximum(128 - _PERIODS, np.minimum(3 * _PERIODS, np.maximum(288, 2 * _PERIODS)))
_STRUCTURED_RUNS = np.maximum(384, 7 * _PERIODS)

# Turns that differ in a word must be long, because short ones may be an enumeration, and a number
# that changes may count something ("Day 12: ...").
_MIN_NEAR_PERIOD = 12
_LOSS_OF_WORD, _LOSS_OF_DIGIT = 6, 10
_NEAR_SCORES = np.maximum(192, 4 * _PERIODS)
_NEAR_SCORES[: _MIN_NEAR_PERIOD - 1] = np.iinfo(np.int64).max
# A question of so many lines lists what the answer may go through, one by one.
_LISTING_LINES = 8

_ASKS_TO_REPEAT = re.compile(
    r"\b(?:repeat\w*|over and over|again and again|mantra|twice)\b"
    r"|\b(?:\d+|two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty|thirty|forty"
    r"|fifty|hundred|thousand|many|several) times\b"
    r"|\d\s?(?:x|mal|fois|veces|vezes|volte|keer|raz\w*|раз\w*)\b"
    r"|\b(?:wiederhol|rép[eè]t|repit|repet|ripet|herhaal|powtórz)\w*|повтор"
    r"|[\d一二三四五六七八九十百千两]\s?[次遍回]|重复|重複|繰り返|반복",
    re.IGNORECASE,
)
_NUMBER, _WORD = re.compile(r"\d{1,4}"), re.compile(r"\w+")
# Where the prompt does not say how often.
_ASKED_TURNS, _ASKED_TOKENS = 100, 512

_SENTENCE_END = re.compile(r"(?:[.!?][\"'”’)*]*|[。！？][”’」]?) ?$|\n\s*$")
_STRUCTURED_LINE = re.compile(r"(?: {4}|\t)|.*[;{}]\s*$|\s*[\[\]{}]|.*\":|.*\|.*\|")


class RepetitionFinder:
    """Reads one answer token by token, at the cost of some microseconds each.

    Args:
        token_bytes: the text of a token.
        question: what the user asked at last; its own repetitions, and those that it asks for, are
            none of the answer's.
        is_call: whether a text calls tools; None where none may be called.

    Attributes:
        held: how many of the latest tokens may yet be cut off, and must not be shown.
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        *,
        question: str = "",
        is_call: Callable[[str], bool] | None = None,
    ) -> None:
        self._token_bytes = token_bytes
        self._question = question
        self._is_call = is_call
        self._asked_runs = _runs_asked_for(question) if _ASKS_TO_REPEAT.search(question) else None
        self.restart()

    def restart(self) -> None:
        """Forget the tokens so far: what comes now is a text of its own."""
        self.held = 0
        self._answer = bytearray()
        self._texts: list[bytes] = []
        self._words: dict[bytes, int] = {}
        self._in_fence = False
        # The latest tokens, the latest first, begin at `_start`; it moves to the front.
        self._recent = np.full(4 * MAX_PERIOD, -1, np.int64)
        self._start = self._recent.size - MAX_PERIOD
        self._runs = np.zeros(MAX_PERIOD, np.int64)
        self._scores = np.zeros(MAX_PERIOD, np.int64)

    def update(self, token: int) -> bool:
        """Take the next token; whether the answer goes in a cycle, and `held` tokens are too many.

        Once it does, it is to be asked no more.
        """
        self._append(token)
        asked = self._asked_runs
        structured = asked is not None or self._is_structured()
        # Two turns of what is structured have been shown.
        runs = self._runs - _PERIODS if structured else self._runs
        self.held = 0 if asked is not None else max(0, int(runs.max()))
        if not structured and self._ends_near_cycle():
            # What differs has been shown; of a turn that came again after that, one stays.
            self.held = self.held if (self._runs >= _PERIODS).any() else 0
            return True
        needed = _RUNS
        if structured:
            needed = _STRUCTURED_RUNS if asked is None else asked
        cycles = np.flatnonzero(self._runs >= needed)
        if not cycles.size or not self._is_cycle(int(cycles[0]) + 1):
            return False
        self.held -= self._rest_of_sentence(int(cycles[0]) + 1)
        return True

    def _append(self, token: int) -> None:
        text = self._token_bytes(token)
        # " Hello" inside a text is "Hello" at its start.
        word = text.strip(b" ").lower() or text
        number = self._words.setdefault(word, len(self._words))
        same = self._recent[self._start : self._start + MAX_PERIOD] == number
        self._runs += 1
        self._runs *= same
        loss = _LOSS_OF_DIGIT if word.isdigit() else _LOSS_OF_WORD
        self._scores += np.where(same, 1, -loss)
        np.maximum(self._scores, 0, out=self._scores)
        if self._start == 0:
            self._start = self._recent.size - MAX_PERIOD
            self._recent[self._start :] = self._recent[:MAX_PERIOD]
        self._start -= 1
        self._recent[self._start] = number
        self._texts.append(text)
        self._answer += text
        if b"`" in text:
            self._in_fence = self._answer.count(b"```") % 2 == 1

    def _is_structured(self) -> bool:
        """Whether one of the latest two lines is code, a row of a table, or JSON."""
        if self._in_fence:
            return True
        lines = self._answer.rstrip().rsplit(b"\n", 2)[-2:]
        return any(_STRUCTURED_LINE.match(line.decode("utf-8", "replace")) for line in lines)

    def _ends_near_cycle(self) -> bool:
        periods = np.flatnonzero(self._scores >= _NEAR_SCORES)
        # Equal turns are a cycle, or none, by their run.
        if not periods.size or (self._runs >= 2 * _PERIODS).any():
            return False
        end = _joined(self._texts[-8:])
        lists = self._question.count("\n") >= _LISTING_LINES
        return (
            _SENTENCE_END.search(end) is not None
            and not lists
            and self._is_cycle(int(periods[0]) + 1)
        )

    def _is_cycle(self, period: int) -> bool:
        """Whether turns of this period come over and over for no reason."""
        turn, question = _joined(self._texts[-period:]), self._question
        needed = 0
        if not any(map(str.isalpha, turn)) and any(map(str.isdigit, turn)):
            needed = int(_STRUCTURED_RUNS[period - 1])
        # "Write I am late on 50 lines."
        if _words(turn) <= _words(question) and _NUMBER.search(question):
            needed = max(needed, int(_runs_asked_for(question)[period - 1]))
        run = int(self._runs[period - 1])
        return run >= needed and 2 * turn not in question and not self._calls()

    def _rest_of_sentence(self, period: int) -> int:
        """How many of the tokens that are held end the sentence that was begun.

        A cycle often begins within a sentence, because the one before ends in the same words.
        """
        end = len(self._texts) - self.held
        for more in range(min(period, self.held)):
            shown = _joined(self._texts[max(0, end + more - 8) : end + more])
            following = _joined(self._texts[end + more : end + more + 1])
            ended = _SENTENCE_END.search(shown) is not None
            if ended and (shown[-1] not in ".!?" or following[:1].isspace()):
                return more
        return 0

    def _calls(self) -> bool:
        if self._is_call is None:
            return False
        return self._is_call(self._answer.decode("utf-8", "replace"))


def _runs_asked_for(question: str) -> Counts:
    """The runs that are a cycle where the question asks for repetition."""
    turns = max((int(number) for number in _NUMBER.findall(question)), default=_ASKED_TURNS)
    return np.maximum(_ASKED_TOKENS, (turns + turns // 4) * _PERIODS)


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _joined(texts: list[bytes]) -> str:
    return b"".join(texts).decode("utf-8", "replace")
