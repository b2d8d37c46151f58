"""Tasks without labels: right answers are right in all usual spellings, wrong ones in none."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from itertools import product

import pytest
from edgesdk_export.confidence.answer_reading import final_part, letter_in, names, numbers_in
from edgesdk_export.confidence.arithmetic import compute
from edgesdk_export.confidence.levels import KINDS, LevelChoice, TaskStream
from edgesdk_export.confidence.number_words import in_words
from edgesdk_export.confidence.task import (
    LANGUAGES,
    KnownFields,
    KnownName,
    KnownNumber,
    KnownNumbers,
    Language,
    PriorTask,
    Style,
)
from edgesdk_export.confidence.task_kind import TaskKind

SENTENCES: dict[Language, str] = {
    "en": "It is {}, I think.",
    "zh": "我想是{}。",
    "de": "Ich denke, es ist {}.",
    "es": "Creo que es {}.",
}
STEPS: dict[Language, str] = {
    "en": "First 17 and 4.\nAnswer: {}",
    "zh": "先算 17 和 4。\n答案：{}",
    "de": "Zuerst 17 und 4.\n**Antwort:** {}",
    "es": "Primero 17 y 4.\nRespuesta: {}.",
}
EVERY = [
    pytest.param(kind, style, id=f"{kind.name}-{style}") for kind in KINDS for style in kind.styles
]


def said(task: PriorTask, *, right: bool) -> list[str]:
    """Answers to a task, in several spellings."""
    answer, shift = task.answer, 0 if right else 1
    if isinstance(answer, KnownFields):
        fields = {
            name: value + shift if isinstance(value, int) else value + "x" * shift
            for name, value in answer.fields.items()
        }
        if task.style == "tool_call":
            return [json.dumps({"name": task.function, "arguments": fields})] + (
                [] if right else [json.dumps({"name": "other", "arguments": dict(answer.fields)})]
            )
        return [json.dumps(fields), f"```json\n{json.dumps(fields, ensure_ascii=False)}\n```"]
    if isinstance(answer, KnownName):
        words = list(answer.spellings) if right else [answer.rivals[0], "?"]
        value: object = words[0]
    elif isinstance(answer, KnownNumbers):
        numbers = list(map(int, answer.values if right else answer.values[::-1]))
        words, value = [", ".join(map(str, numbers)), " < ".join(map(str, numbers))], numbers
    else:
        assert isinstance(answer, KnownNumber)
        number = answer.value + shift
        value = int(number) if number.denominator == 1 else float(number)
        words = [str(value), f"{value:,}", str(value).replace(".", ",")]
    match task.style:
        case "letter":
            assert task.letter is not None
            letter = task.letter if right else "ABCD"["ABCD".index(task.letter) - 1]
            return [letter, f"{letter}.", f"({letter}) {words[0]}"]
        case "steps":
            return [STEPS[task.language].format(word) for word in words]
        case "json":
            return [json.dumps({"answer": value}), f'{{"answer": "{words[0]}"}}']
        case "code":
            return [f"print({value} * 1)", f"```python\nx = {value} + 0\n```"]
        case "sentence":
            return [SENTENCES[task.language].format(word) for word in words]
        case _:
            return [*words, f"{words[0]}.", f"**{words[0]}**\n"]


@pytest.mark.parametrize(("kind", "style"), EVERY)
def test_each_task_knows_right_answers_and_wrong_ones(kind: TaskKind, style: Style) -> None:
    for level, language, seed in product(range(kind.levels), LANGUAGES, "ab"):
        task = kind.draw(seed, level, language, style)
        assert [text for text in said(task, right=True) if not task.right(text)] == []
        assert [text for text in said(task, right=False) if task.right(text)] == []
        assert not any(task.right(text) for text in ("", "...", "{", '{"answer": null}'))
        assert "{" not in task.prompt or style in ("json", "tool_call")
        assert (task.schema() is None) == (style != "json")


def test_the_same_seed_gives_the_same_tasks() -> None:
    def prompts(seed: int) -> list[str]:
        return [task.prompt for task in TaskStream(seed, 120)]

    assert prompts(1) == prompts(1)
    assert len(set(prompts(1)) & set(prompts(2))) < 12
    found = list(TaskStream(1, 380))
    assert {task.kind for task in found} == {kind.name for kind in KINDS}
    assert {(task.kind, task.language) for task in found} == {
        (kind.name, language) for kind in KINDS for language in LANGUAGES
    }
    assert {(task.kind, task.style) for task in found} == {
        (kind.name, style) for kind in KINDS for style in kind.styles
    }


def settled(able: int, levels: int = 5) -> LevelChoice:
    """What is found for a model that is right up to a level, half the time at it."""
    choice = LevelChoice(levels, levels // 2)
    for at in range(80):
        choice.observe(right=choice.level < able or (choice.level == able and at % 2 == 0))
    return choice


@pytest.mark.parametrize("able", range(5))
def test_levels_settle_where_a_model_is_right_now_and_then(able: int) -> None:
    assert (settled(able).settled, settled(able).useful) == (able, True)


def test_a_kind_that_is_beside_the_range_is_asked_no_more() -> None:
    assert (settled(-1).settled, settled(-1).useful) == (0, False)
    assert (settled(9).settled, settled(9).useful) == (4, False)
    stream = TaskStream(3, 600)
    asked: Counter[str] = Counter()
    for task in stream:
        asked[task.kind] += 1
        stream.observe(task, right=task.kind != "sums" and asked[task.kind] % 2 == 0)
    assert sum(asked.values()) == 600
    # Three levels, of eight tasks each.
    assert asked["sums"] == 24
    assert min(count for kind, count in asked.items() if kind != "sums") >= 30


def test_a_model_that_is_right_in_everything_is_still_asked_to_the_end() -> None:
    stream = TaskStream(3, 700)
    count = 0
    for task in stream:
        stream.observe(task, right=True)
        count += 1
    assert count == 700


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("2 + 3 * 4", 14),
        ("print((1 + 2) ** 3)", 27),
        ("total = -7 // 2", -4),
        ("0.1 + 0.2", Fraction(3, 10)),
        ("1 / 3", Fraction(1, 3)),
        ("1 / 0", None),
        ("9 ** 9 ** 9", None),
        ("2 ** 64 ** 1 * 2 ** 64 * 2 ** 64 * 2 ** 64 * 2 ** 64", None),
        ("__import__('os').getcwd()", None),
        ("sum([1, 2])", None),
        ("print(1, 2)", None),
        ("1; 2", None),
        ("True + 1", None),
        ("x + 1", None),
        ("[" * 150 + "1" + "]" * 150, None),
        ("1" * 401, None),
        ("1 +", None),
        ("1e999", None),
        ("\0", None),
    ],
)
def test_code_is_computed_by_its_syntax_alone(line: str, value: object) -> None:
    assert compute(line) == value


def test_numbers_are_read_as_each_language_writes_them() -> None:
    def readings(text: str) -> list[set[float]]:
        return [set(map(float, found)) for found in numbers_in(text)]

    assert readings("1,234.5 and 1.234,5") == [{1234.5}, {1234.5}]
    assert readings("1.234") == [{1.234, 1234}]
    assert readings("答案是８个。") == [{8}]
    assert readings("-5, 5-3, x2, 7.") == [{-5}, {5}, {3}, {7}]
    assert readings("\N{MINUS SIGN}5 und 12\u202f345") == [{-5}, {12345}]


def test_names_are_whole_words_whatever_the_accents() -> None:
    assert names("La capital es BOGOTA.", "Bogotá")
    assert names("首都是巴黎。", "巴黎")
    assert not names("Romania", "Rome")
    assert not names("Nigeria", "Niger")


def test_what_is_thought_before_the_answer_does_not_count() -> None:
    assert final_part("Is the answer 3?\nNo.\nAnswer: **4**").strip(" *") == "4"
    assert final_part("3 + 4\nmakes 7.\n\n") == "makes 7."
    assert letter_in("A cat? No: it is C.") == "A"
    assert letter_in("The right one is C.") == "C"
    assert letter_in("none") is None


@pytest.mark.parametrize(
    ("number", "en", "zh", "de", "es"),
    [
        (7, "seven", "七", "sieben", "siete"),
        (15, "fifteen", "十五", "fünfzehn", "quince"),
        (21, "twenty-one", "二十一", "einundzwanzig", "veintiuno"),
        (48, "forty-eight", "四十八", "achtundvierzig", "cuarenta y ocho"),
        (100, "one hundred", "一百", "einhundert", "cien"),
        (305, "three hundred and five", "三百零五", "dreihundertfünf", "trescientos cinco"),
        (1020, "one thousand and twenty", "一千零二十", "eintausendzwanzig", "mil veinte"),
        (
            7519,
            "seven thousand five hundred and nineteen",
            "七千五百一十九",
            "siebentausendfünfhundertneunzehn",
            "siete mil quinientos diecinueve",
        ),
    ],
)
def test_numbers_in_words(number: int, en: str, zh: str, de: str, es: str) -> None:
    assert [in_words(number, language) for language in LANGUAGES] == [en, zh, de, es]
