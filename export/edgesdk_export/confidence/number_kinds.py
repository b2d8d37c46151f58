"""Kinds of tasks whose answer is computed: arithmetic, dates, units, order, letters."""

from __future__ import annotations

import datetime
import random
from fractions import Fraction

from edgesdk_export.confidence.number_words import in_words
from edgesdk_export.confidence.task import KnownNumber, KnownNumbers, Language
from edgesdk_export.confidence.task_kind import DrawnQuestion, TaskKind
from edgesdk_export.confidence.wordings import word_list, wording


def _number(text: str, value: float | Fraction) -> DrawnQuestion:
    return DrawnQuestion(text, KnownNumber(Fraction(value)))


def _digits(chance: random.Random, count: int) -> int:
    return chance.randrange(10 ** (count - 1) + 1, 10**count)


def _sums(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    terms = [_digits(chance, 1 + level) for _ in range(2 + level // 2)]
    return _number(
        wording("arithmetic", language, expression=" + ".join(map(str, terms))), sum(terms)
    )


def _products(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    a, b = _digits(chance, 1 + (level + 1) // 2), _digits(chance, 1 + level // 2)
    return _number(wording("arithmetic", language, expression=f"{a} * {b}"), a * b)


def _percentages(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    percent = chance.choice(((10, 50), (20, 25, 75), (5, 15, 35), (12, 37, 64))[level])
    whole = 100 * chance.randrange(1, 10 ** (1 + level // 2) + 9)
    text = wording("percentages", language, percent=percent, whole=whole)
    return _number(text, Fraction(percent * whole, 100))


def _sequences(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    start, step = _digits(chance, 1 + level // 2), _digits(chance, 1 + (level + 1) // 2)
    growth = chance.randrange(1, 5) if level > 1 else 0
    found = [start]
    for at in range(5):
        found.append(found[-1] + step + growth * at)
    numbers = ", ".join(map(str, found[:-1]))
    return _number(wording("sequences", language, numbers=numbers), found[-1])


def _word_problems(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    most = 9 if level < 3 else 60
    a, b, c = (chance.randrange(2, most) for _ in range(3))
    steps = min(level, 2)
    d = chance.randrange(1, a)
    name = chance.choice(word_list("names", language))
    value = (a + b, a + b * c, a + b * c - d)[steps]
    text = wording(f"word_problems_{steps}", language, name=name, a=a, b=b, c=c, d=d)
    return _number(text, value)


def _sorting(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    numbers = chance.sample(range(1, 10 ** (2 + level // 2)), 3 + 2 * level)
    text = wording("sorting", language, numbers=", ".join(map(str, numbers)))
    return DrawnQuestion(text, KnownNumbers(tuple(map(Fraction, sorted(numbers)))))


def _letters(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    word = "".join(chance.sample(word_list("words", language), 1 + level)).lower()
    letter = chance.choice(sorted(set(word)))
    return _number(wording("letters", language, letter=letter, word=word), word.count(letter))


def _counting(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    count = chance.randrange(3 + 4 * level, 8 + 6 * level)
    words = ", ".join(chance.choices(word_list("words", language), k=count))
    return _number(wording("counting", language, words=words), count)


def _dates(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    start = datetime.date(2001, 1, 1) + datetime.timedelta(days=chance.randrange(10_000))
    if level == 0:
        start = start.replace(day=chance.randrange(1, 10))
    days = chance.randrange(*((2, 18), (20, 50), (60, 300))[level])
    end = start + datetime.timedelta(days=days)
    return _number(wording("dates", language, start=start, end=end), days)


_RATIOS = (1000, 100, 1000, 60, 24)


def _units(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    at = chance.randrange(len(_RATIOS))
    count = _digits(chance, 1 + level // 2)
    if level % 2:
        small, large = "small_units", "large_units"
        value = Fraction(count * _RATIOS[at])
    else:
        small, large = "large_units", "small_units"
        value, count = Fraction(count), count * _RATIOS[at]
    text = wording(
        "units", language, count=count,
        small=word_list(small, language)[at], large=word_list(large, language)[at],
    )  # fmt: skip
    return _number(text, value)


def _comparisons(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    whole, tenths = chance.randrange(1, 90), chance.randrange(2, 9)
    near = chance.randrange(10, 10 * tenths)
    pair = (
        (str(whole), str(whole + chance.randrange(1, 9))),
        (f"{whole}.{tenths}", f"{whole}.{tenths - 1}"),
        (f"{whole}.{tenths}", f"{whole}.{near}"),
    )[level]
    a, b = chance.sample(pair, 2)
    value = max(Fraction(a), Fraction(b))
    return _number(wording("comparisons", language, a=a, b=b), value)


def _number_words(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    number = _digits(chance, 2 + level)
    return _number(wording("number_words", language, words=in_words(number, language)), number)


NUMBER_KINDS = (
    TaskKind("sums", 5, ("number", "sentence", "steps", "json"), _sums),
    TaskKind("products", 5, ("number", "steps", "json", "code"), _products),
    TaskKind("percentages", 4, ("number", "brief", "steps", "code"), _percentages),
    TaskKind("sequences", 4, ("number", "brief", "steps", "json"), _sequences),
    TaskKind("word_problems", 4, ("number", "sentence", "steps", "code"), _word_problems),
    TaskKind("sorting", 4, ("brief", "sentence", "json"), _sorting),
    TaskKind("letters", 3, ("number", "sentence", "steps"), _letters),
    TaskKind("counting", 4, ("number", "brief", "json"), _counting),
    TaskKind("dates", 3, ("number", "brief", "steps"), _dates),
    TaskKind("units", 4, ("number", "brief", "code", "json"), _units),
    TaskKind("comparisons", 3, ("number", "brief", "json"), _comparisons),
    TaskKind("number_words", 3, ("number", "brief", "json"), _number_words),
)
