"""Choose which task comes next: every kind in turn, at the level that suits the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgesdk_export.confidence.name_kinds import NAME_KINDS
from edgesdk_export.confidence.number_kinds import NUMBER_KINDS
from edgesdk_export.confidence.task import LANGUAGES, PriorTask
from edgesdk_export.confidence.task_kind import TaskKind

KINDS: tuple[TaskKind, ...] = (*NUMBER_KINDS, *NAME_KINDS)
# Changes with the tasks: answers to others are not those of these.
TASKS_VERSION = 1

# The share of right answers that teaches most, as the tasks need right and wrong ones of a kind.
_LEAST_RIGHT, _MOST_RIGHT = 0.3, 0.8
# Answers after which a level is judged.
_ROUND = 8


@dataclass
class LevelChoice:
    """Finds the level of one kind at which a model is right in 30 to 80 %.

    After each round of answers at a level the next is harder or easier, until the share is in that
    range, or the levels on both sides were judged, or end. Then the level nearest to the middle of
    the range is settled.

    Attributes:
        level: at which the next task is asked.
        settled: the level that was chosen; None while it is looked for.
    """

    levels: int
    level: int
    settled: int | None = None
    _seen: dict[int, list[bool]] = field(default_factory=dict)

    def observe(self, *, right: bool) -> None:
        """Take note of an answer at `level`."""
        answers = self._seen.setdefault(self.level, [])
        answers.append(right)
        if self.settled is None and len(answers) == _ROUND:
            self._judge(sum(answers) / _ROUND)

    def _judge(self, share: float) -> None:
        step = (share > _MOST_RIGHT) - (share < _LEAST_RIGHT)
        following = self.level + step
        if step and 0 <= following < self.levels and following not in self._seen:
            self.level = following
            return
        middle = (_LEAST_RIGHT + _MOST_RIGHT) / 2
        shares = {level: sum(found) / len(found) for level, found in self._seen.items()}
        self.level = min(shares, key=lambda at: (abs(shares[at] - middle), at != self.level))
        self.settled = self.level

    @property
    def useful(self) -> bool:
        """Whether the settled level has right and wrong answers enough, or none is settled yet."""
        answers = self._seen.get(self.level, [])
        if self.settled is None or len(answers) < _ROUND:
            return True
        return _LEAST_RIGHT <= sum(answers[:_ROUND]) / _ROUND <= _MOST_RIGHT


class TaskStream:
    """Draws tasks of all kinds in turn, in all languages and styles; settles each kind's level.

    A kind of which the model is right or wrong in all, at every level, is asked no more once that
    is known. The same seed and the same answers give the same tasks.

    Args:
        seed: of the tasks.
        count: how many there are in all.
    """

    def __init__(self, seed: int, count: int) -> None:
        self._seed, self._count = seed, count
        self.choices = {kind.name: LevelChoice(kind.levels, kind.levels // 2) for kind in KINDS}

    def __iter__(self) -> Iterator[PriorTask]:
        drawn: Counter[str] = Counter()
        left = self._count
        while left:
            asked = [kind for kind in KINDS if self.choices[kind.name].useful]
            # All kinds are beside the range: the rest is drawn from what there is.
            for kind in (asked or KINDS)[:left]:
                number = drawn[kind.name]
                drawn[kind.name] += 1
                yield self._draw(kind, number)
                left -= 1

    def _draw(self, kind: TaskKind, number: int) -> PriorTask:
        # English more often: it is what most apps' models are asked in.
        language = (*LANGUAGES, "en")[number % 5]
        style = kind.styles[(number + number // 5) % len(kind.styles)]
        level = self.choices[kind.name].level
        return kind.draw(f"{self._seed}/{number}", level, language, style)

    def observe(self, task: PriorTask, *, right: bool) -> None:
        """Take note of how a task was answered, before the next one is drawn."""
        self.choices[task.kind].observe(right=right)
