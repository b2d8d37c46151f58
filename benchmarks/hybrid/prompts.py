"""Prompts whose answers can be checked: families of reasoning-gym at four levels each.

A prompt is a family, a level and a seed. The seeds of training, calibration and test lie far
apart, and a question that was asked before is not asked again, because easy levels repeat
themselves: a test question is never one that the regression was trained on. Some families are only
ever tested; of those, some have a relative among the trained ones and some have none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any, Literal

import reasoning_gym

Split = Literal["train", "calibration", "test"]
# By family, level and split.
Wanted = Callable[[str, int, Split], bool]

INSTRUCTION = "Answer with the result only, nothing else."
# Of one round of a family's level; test questions are what the intervals are as wide as.
ROUND: tuple[Split, ...] = ("train", "test", "calibration", "train", "test")
_FIRST_SEED: dict[Split, int] = {"train": 0, "calibration": 1_000_000, "test": 2_000_000}
_EXAMPLE_SEED = 9_000_000
_EXAMPLES = 3
_MOST_REPEATS = 50

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_FRACTION = re.compile(r"-?\d+/\d+")
_TIME = re.compile(r"\d+:\d\d")
_LINE = re.compile(r"[^\n]*[^\s.]")


@dataclass(frozen=True)
class TaskFamily:
    """Questions of one kind.

    Attributes:
        name: in reasoning-gym.
        levels: its settings, easy to hard.
        answer: what of a reply is the answer; its last match is.
        held_out: whether it is only ever tested.
    """

    name: str
    levels: tuple[Mapping[str, Any], ...]
    answer: re.Pattern[str] = _NUMBER
    held_out: bool = False


def _sums(*settings: tuple[int, int, int]) -> tuple[dict[str, Any], ...]:
    """Levels of (most terms, fewest digits, most digits)."""
    return tuple(
        {"min_terms": 2, "max_terms": terms, "min_digits": low, "max_digits": high}
        for terms, low, high in settings
    )


FAMILIES: tuple[TaskFamily, ...] = (
    TaskFamily("chain_sum", _sums((2, 1, 1), (3, 1, 2), (4, 2, 3), (6, 3, 4))),
    TaskFamily("products", _sums((2, 1, 1), (2, 1, 2), (2, 2, 2), (2, 2, 3))),
    TaskFamily(
        "basic_arithmetic",
        tuple(
            {**level, "operators": ("+", "-", "*")}
            for level in _sums((2, 1, 1), (3, 1, 1), (4, 1, 2), (5, 1, 2))
        ),
    ),
    TaskFamily(
        "simple_equations",
        (
            {"max_terms": 2, "max_value": 9, "operators": ("+",), "operators_weights": (1.0,)},
            {
                "max_terms": 2,
                "max_value": 20,
                "operators": ("+", "-"),
                "operators_weights": (0.5, 0.5),
            },
            {"max_terms": 3, "max_value": 20},
            {"max_terms": 4, "max_value": 50},
        ),
    ),
    TaskFamily(
        "gcd", ({"max_value": 12}, {"max_value": 40}, {"max_value": 150}, {"max_value": 1000})
    ),
    TaskFamily(
        "fraction_simplification",
        (
            {"max_value": 5, "min_factor": 2, "max_factor": 5, "styles": ("plain",)},
            {"max_value": 10, "min_factor": 2, "max_factor": 6, "styles": ("plain",)},
            {"max_value": 40, "min_factor": 2, "max_factor": 12, "styles": ("plain",)},
            {"max_value": 200, "min_factor": 2, "max_factor": 40, "styles": ("plain",)},
        ),
        _FRACTION,
    ),
    TaskFamily("count_bits", ({"max_n": 31}, {"max_n": 63}, {"max_n": 255}, {"max_n": 4095})),
    TaskFamily(
        "letter_counting",
        (
            {"min_words": 1, "max_words": 1},
            {"min_words": 1, "max_words": 2},
            {"min_words": 2, "max_words": 5},
            {"min_words": 6, "max_words": 10},
        ),
    ),
    TaskFamily(
        "leg_counting",
        (
            {"min_animals": 1, "max_animals": 1, "max_instances": 3},
            {"min_animals": 1, "max_animals": 1, "max_instances": 9},
            {"min_animals": 1, "max_animals": 2, "max_instances": 6},
            {"min_animals": 2, "max_animals": 3, "max_instances": 8},
        ),
    ),
    TaskFamily(
        "base_conversion",
        (
            {"max_base": 10, "min_value": 2, "max_value": 9},
            {"max_base": 10, "min_value": 2, "max_value": 20},
            {"max_base": 10, "min_value": 10, "max_value": 60},
            {"max_base": 16, "min_value": 20, "max_value": 200},
        ),
        _LINE,
    ),
    TaskFamily(
        "prime_factorization",
        (
            {"max_value": 30},
            {"max_value": 60},
            {"min_value": 40, "max_value": 200},
            {"min_value": 150},
        ),
        _LINE,
    ),
    TaskFamily(
        "calendar_arithmetic",
        (
            {"tasks": ["weekday_of_date_from_first_date"], "offset_upper_bound": 3},
            {"tasks": ["weekday_of_date_from_first_date"], "offset_upper_bound": 10},
            {"tasks": ["weekday_offset"], "offset_upper_bound": 20},
            {"tasks": ["weekday_offset", "weekday_of_date"], "offset_upper_bound": 100},
        ),
        _LINE,
    ),
    TaskFamily(
        "family_relationships",
        (
            {"min_family_size": 3, "max_family_size": 3},
            {"min_family_size": 3, "max_family_size": 4},
            {"min_family_size": 4, "max_family_size": 5},
            {"min_family_size": 6, "max_family_size": 7},
        ),
        _LINE,
    ),
    TaskFamily(
        "decimal_chain_sum",
        tuple(
            {**level, "min_decimal_places": 1, "max_decimal_places": places}
            for level, places in zip(
                _sums((2, 1, 1), (2, 1, 2), (3, 1, 2), (3, 2, 3)), (1, 1, 2, 2), strict=True
            )
        ),
        held_out=True,
    ),
    TaskFamily(
        "lcm",
        ({"max_value": 8}, {"max_value": 12}, {"max_value": 30}, {"max_value": 100}),
        held_out=True,
    ),
    TaskFamily(
        "spell_backward",
        (
            {"min_word_len": 3, "max_word_len": 3},
            {"min_word_len": 3, "max_word_len": 4},
            {"min_word_len": 4, "max_word_len": 6},
            {"min_word_len": 6, "max_word_len": 9},
        ),
        _LINE,
        held_out=True,
    ),
    TaskFamily(
        "time_intervals",
        tuple(
            {"task_types": ["time"], "max_time_difference_seconds": int(hours * 3600)}
            for hours in (0.5, 1, 3, 12)
        ),
        _TIME,
        held_out=True,
    ),
    TaskFamily(
        "number_sequence",
        (
            {"min_terms": 7, "min_value": 0, "max_value": 10, "max_complexity": 1},
            {"min_terms": 5, "min_value": 0, "max_value": 30, "max_complexity": 1},
            {"min_terms": 5, "min_value": 0, "max_value": 30, "max_complexity": 2},
            {"min_terms": 5, "min_value": 0, "max_value": 30, "max_complexity": 3},
        ),
        held_out=True,
    ),
)


@dataclass(frozen=True)
class Prompt:
    """One question, and where it is from."""

    family: str
    level: int
    split: Split
    seed: int
    question: str

    def messages(self) -> list[dict[str, Any]]:
        """A chat that shows examples of the easier levels first. All prompts of a family begin
        alike, so a KV cache keeps that part."""
        chat = [{"role": "system", "content": INSTRUCTION}]
        for question, answer in _examples(self.family):
            chat.append({"role": "user", "content": question})
            chat.append({"role": "assistant", "content": answer})
        return [*chat, {"role": "user", "content": self.question}]

    def text(self) -> str:
        """The same for a model that goes on with a text; the smallest do better so."""
        shown = "".join(
            f"Question: {question}\nAnswer: {answer}\n\n"
            for question, answer in _examples(self.family)
        )
        return f"{shown}Question: {self.question}\nAnswer:"

    def right(self, reply: str) -> bool:
        """Whether a reply has the answer; a part of the credit is not enough."""
        found = _family(self.family).answer.findall(reply)
        if not found:
            return False
        answer = found[0 if _family(self.family).answer is _LINE else -1].strip().replace(",", "")
        dataset, at = _entry(self.family, self.level, self.seed)
        try:
            return float(dataset.score_answer(answer, dataset[at])) >= 0.99
        except ValueError:
            # Some scorers cannot read an answer that is not of their form.
            return False


def rounds(wanted: Wanted = lambda family, level, split: True) -> Iterator[Prompt]:
    """Prompts until no new one is wanted, evenly over families, levels and splits wherever one
    stops. Those that are not wanted are passed over, not left out: the split of a question that
    several could have does not depend on it."""
    left = {
        (family.name, level, split): _unseen(family, level, split, asked)
        for family in FAMILIES
        for asked in [{question for question, _ in _examples(family.name)}]
        for level in range(len(family.levels))
        for split in _FIRST_SEED
        if split == "test" or not family.held_out
    }
    waiting = {key for key in left if wanted(*key)}
    asked_for = {family for family, _, _ in waiting}
    left = {key: prompts for key, prompts in left.items() if key[0] in asked_for}
    while waiting:
        for split in ROUND:
            for family in FAMILIES:
                for level in range(len(family.levels)):
                    key = (family.name, level, split)
                    prompts = left.get(key)
                    prompt = next(prompts, None) if prompts else None
                    if prompt is None:
                        left.pop(key, None)
                        waiting.discard(key)
                    elif key in waiting:
                        yield prompt


def _unseen(family: TaskFamily, level: int, split: Split, asked: set[str]) -> Iterator[Prompt]:
    """Prompts of one level and split, until it only repeats what was `asked`."""
    repeats = 0
    for seed in count(_FIRST_SEED[split] + level * 100_000):
        dataset, at = _entry(family.name, level, seed)
        question = str(dataset[at]["question"]).strip()
        if question not in asked:
            asked.add(question)
            repeats = 0
            yield Prompt(family.name, level, split, seed, question)
        elif (repeats := repeats + 1) == _MOST_REPEATS:
            return


@cache
def _family(name: str) -> TaskFamily:
    return next(family for family in FAMILIES if family.name == name)


@cache
def _dataset(name: str, level: int, base: int) -> Any:
    return reasoning_gym.create_dataset(
        name, seed=base, size=100_000, **_family(name).levels[level]
    )


def _entry(name: str, level: int, seed: int) -> tuple[Any, int]:
    """The dataset that has the seed, and the place there: entry n of seed s is that of s + n."""
    base = seed // 100_000 * 100_000
    return _dataset(name, level, base), seed - base


@cache
def _examples(name: str) -> tuple[tuple[str, str], ...]:
    found = []
    for level in range(_EXAMPLES):
        dataset, at = _entry(name, level, _EXAMPLE_SEED + level)
        entry = dataset[at]
        found.append((str(entry["question"]).strip(), str(entry["answer"])))
    return tuple(found)
