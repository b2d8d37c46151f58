"""What the tasks say in each language, and the facts that they ask for, as the package's files have
them."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from edgesdk_export.confidence.task import Language, Style

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class CapitalFact:
    """A country and its capital, in one language.

    Names and tiers were written down by hand for this table; no collection was copied.

    Attributes:
        tier: how well it is known, 0 best.
        countries, capitals: their names, the usual one first, English ones at the end.
    """

    tier: int
    countries: tuple[str, ...]
    capitals: tuple[str, ...]

    @property
    def country(self) -> str:
        """The usual name of the country."""
        return self.countries[0]

    @property
    def capital(self) -> str:
        """The usual name of the capital."""
        return self.capitals[0]


def wording(kind: str, language: Language, **values: object) -> str:
    """What a task says."""
    return str(_wordings()["kinds"][kind][language]).format(**values)


def instruction(style: Style, language: Language, **values: object) -> str:
    """How an answer is asked for."""
    return str(_wordings()["styles"][style][language]).format(**values)


def word_list(name: str, language: Language) -> list[str]:
    """Words to choose from."""
    return list(_wordings()["lists"][name][language])


@cache
def capital_facts(language: Language) -> tuple[CapitalFact, ...]:
    """All countries with their capitals, the best known first."""
    text = files(__package__).joinpath("capitals.csv").read_text(encoding="utf-8")
    return tuple(
        CapitalFact(
            int(row["tier"]),
            tuple(f"{row[language]}/{row['en']}".split("/")),
            tuple(f"{row[f'{language}_capital']}/{row['en_capital']}".split("/")),
        )
        for row in csv.DictReader(text.splitlines())
    )


@cache
def _wordings() -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath("wordings.toml").read_text(encoding="utf-8"))
