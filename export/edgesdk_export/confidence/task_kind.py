"""A kind of tasks, and how one of them is put into words in a language and a style."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from edgesdk_export.confidence.answer_reading import names
from edgesdk_export.confidence.task import (
    KnownAnswer,
    KnownFields,
    KnownName,
    Language,
    PriorTask,
    Style,
)
from edgesdk_export.confidence.wordings import instruction

_LETTERS = "ABCD"


@dataclass(frozen=True)
class DrawnQuestion:
    """A question without an answer style.

    Attributes:
        options: among which the style "letter" chooses, the right one first.
        function: to be called; None where nothing is called.
        functions: that could be called, as the prompt describes them.
    """

    text: str
    answer: KnownAnswer
    options: tuple[str, ...] = ()
    function: str | None = None
    functions: str = field(default="", compare=False)


@dataclass(frozen=True)
class TaskKind:
    """A kind of tasks.

    Attributes:
        levels: how many there are, of which 0 is the easiest.
        styles: in which it can be answered.
        question: draws one, at a level and in a language.
    """

    name: str
    levels: int
    styles: tuple[Style, ...]
    question: Callable[[random.Random, int, Language], DrawnQuestion]

    def draw(self, seed: str, level: int, language: Language, style: Style) -> PriorTask:
        """Draw a task; the same seed always gives the same one."""
        chance = random.Random(f"{seed}/{self.name}/{level}/{language}/{style}")
        drawn = self.question(chance, level, language)
        parts, letter = [drawn.text], None
        if style == "letter":
            options = list(drawn.options[: len(_LETTERS)])
            chance.shuffle(options)
            letter = _LETTERS[options.index(drawn.options[0])]
            parts += [f"{at}) {each}" for at, each in zip(_LETTERS, options, strict=False)]
        # A form says itself how it is to be filled.
        if not (style == "json" and isinstance(drawn.answer, KnownFields)):
            parts.append(instruction(style, language, functions=drawn.functions))
        return PriorTask(
            self.name, level, language, style, "\n".join(parts), drawn.answer, letter,
            drawn.function,
        )  # fmt: skip


def named(spellings: tuple[str, ...], others: tuple[str, ...]) -> KnownName:
    """A name that is right in any of its spellings, where any of the others is wrong."""
    rivals = (each for each in others if not any(names(right, each) for right in spellings))
    return KnownName(spellings, tuple(rivals))
