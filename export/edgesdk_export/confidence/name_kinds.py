"""Kinds of tasks whose answer is a name, a form or a call: facts, weekdays, logic, JSON, tools."""

from __future__ import annotations

import random
from itertools import pairwise

from edgesdk_export.confidence.task import KnownFields, Language
from edgesdk_export.confidence.task_kind import DrawnQuestion, TaskKind, named
from edgesdk_export.confidence.wordings import CapitalFact, capital_facts, word_list, wording

_FUNCTIONS = (
    "set_timer(minutes: integer), get_weather(city: string, days: integer),"
    " request_money(name: string, euros: integer)"
)


def _fact(
    chance: random.Random, level: int, language: Language
) -> tuple[CapitalFact, list[CapitalFact]]:
    """A fact of a tier, and the others in random order, those of the same tier first."""
    facts = capital_facts(language)
    fact = chance.choice([each for each in facts if each.tier == level])
    others = [each for each in facts if each is not fact]
    chance.shuffle(others)
    return fact, sorted(others, key=lambda each: each.tier != level)


def _capitals(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    fact, others = _fact(chance, level, language)
    wrong = tuple(each.capital for each in others)
    return DrawnQuestion(
        wording("capitals", language, country=fact.country),
        named(fact.capitals, wrong),
        (fact.capital, *wrong[:3]),
    )


def _countries(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    fact, others = _fact(chance, level, language)
    wrong = tuple(each.country for each in others)
    return DrawnQuestion(
        wording("countries", language, capital=fact.capital),
        named(fact.countries, wrong),
        (fact.country, *wrong[:3]),
    )


def _weekdays(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    days = word_list("days", language)
    start, count = chance.randrange(7), chance.randrange(1, 7)
    count += 7 * (0, chance.randrange(1, 5), chance.randrange(6, 40))[level]
    right = days[(start + count) % 7]
    wrong = [day for day in days if day not in (right, days[start])]
    chance.shuffle(wrong)
    spellings = {
        "zh": (right.replace("星期", "周"), *(("星期天", "周天") if right == "星期日" else ())),
        "de": ("Sonnabend",) if right == "Samstag" else (),
    }
    return DrawnQuestion(
        wording("weekdays", language, day=days[start], count=count),
        # An answer may say again what day is today.
        named((right, *spellings.get(language, ())), tuple(wrong)),
        (right, days[start], *wrong[:2]),
    )


def _logic(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    people = chance.sample(word_list("names", language), 3 + level)
    steps = [wording("logic_step", language, a=a, b=b) for a, b in pairwise(people)]
    chance.shuffle(steps)
    oldest = chance.random() < 0.5
    right = people[0] if oldest else people[-1]
    wrong = tuple(each for each in people if each != right)
    steps.append(wording("logic_oldest" if oldest else "logic_youngest", language))
    return DrawnQuestion(" ".join(steps), named((right,), wrong), (right, *wrong[:3]))


def _forms(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    name, other = chance.sample(word_list("names", language), 2)
    age, ago, wrong = (
        chance.randrange(30, 80), chance.randrange(2, 25), chance.randrange(5, 29),
    )  # fmt: skip
    city = chance.choice([each.capital for each in capital_facts(language) if each.tier == 0])
    text = wording(
        f"forms_{level}", language, name=name, other=other, age=age, ago=ago, past=age - ago,
        wrong=wrong, city=city,
    )  # fmt: skip
    fields: dict[str, str | int] = {"name": name, "age": age}
    return DrawnQuestion(text, KnownFields(fields if level == 0 else {**fields, "city": city}))


def _tool_calls(chance: random.Random, level: int, language: Language) -> DrawnQuestion:
    if level == 0:
        minutes = chance.randrange(2, 90)
        text, function = wording("timer", language, minutes=minutes), "set_timer"
        fields: dict[str, str | int] = {"minutes": minutes}
    elif level == 1:
        days = chance.randrange(2, 10)
        city = chance.choice([each.capital for each in capital_facts(language) if not each.tier])
        text, function = wording("weather", language, city=city, days=days), "get_weather"
        fields = {"city": city, "days": days}
    else:
        name = chance.choice(word_list("names", language))
        paid, rest = chance.randrange(5, 60), chance.randrange(5, 60)
        text = wording("transfer", language, name=name, total=paid + rest, paid=paid)
        function, fields = "request_money", {"name": name, "euros": rest}
    return DrawnQuestion(text, KnownFields(fields), function=function, functions=_FUNCTIONS)


NAME_KINDS = (
    TaskKind("capitals", 3, ("brief", "sentence", "json"), _capitals),
    TaskKind("countries", 3, ("brief", "sentence", "json"), _countries),
    TaskKind("choices", 3, ("letter",), _capitals),
    TaskKind("weekdays", 3, ("brief", "sentence", "steps", "letter"), _weekdays),
    TaskKind("logic", 4, ("brief", "json", "steps", "letter"), _logic),
    TaskKind("forms", 3, ("json",), _forms),
    TaskKind("tool_calls", 3, ("tool_call",), _tool_calls),
)
