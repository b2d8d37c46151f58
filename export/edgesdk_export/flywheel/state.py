"""The folder of a flywheel: its turns, which model is current, and a history for people.

    FOLDER/current.json          models in the order of their promotion; the last one is current
    FOLDER/history.jsonl         a line for each promotion, refusal and rollback
    FOLDER/turns/0001/NAME.json  what a finished step of a turn came to

`current.json` is replaced as a whole, and is all that decides which model is current.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from edgesdk.errors import RequestError
from edgesdk.system.atomic_files import write_atomically

# Of a turn: what was learned, and the confidence of the model that came of it.
LEARNED, PROFILE = "learned", "profile"
_CURRENT, _HISTORY, _JOB = "current.json", "history.jsonl", "job.json"
_LOCK = ".lock"


@dataclass(frozen=True)
class PromotedModel:
    """What an app loads, and what the next turn starts from.

    Attributes:
        turn: that made it; 0 for the model that the flywheel began with.
        checkpoint: whose weights are trained.
        bundle: what runs.
        adapter: that goes with the bundle; None for none.
        profile: folder of the confidence that was trained and calibrated with it; None for none.
    """

    turn: int
    checkpoint: Path
    bundle: Path
    adapter: Path | None = None
    profile: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it, of JSON's types."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
        }


class FlywheelFolder:
    """Reads and writes the folder of a flywheel. One process at a time turns it: see `locked`.

    Raises:
        RequestError: `current.json` is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def promoted(self) -> list[PromotedModel]:
        """The models that were promoted, the current one last; none before the first turn."""
        file = self.path / _CURRENT
        if not file.is_file():
            return []
        try:
            return [_promoted_from(value) for value in json.loads(file.read_text())]
        except (ValueError, TypeError, KeyError) as error:
            raise RequestError(f"{file} is damaged: {error}.") from None

    @property
    def current(self) -> PromotedModel:
        """The current model.

        Raises:
            RequestError: there is none yet.
        """
        promoted = self.promoted()
        if not promoted:
            raise RequestError(
                f"{self.path} is no flywheel's folder.", hint="Begin with: edgesdk flywheel turn"
            )
        return promoted[-1]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from turning it or rolling it back; a process that ends gives it free.

        Raises:
            RequestError: another one is at it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RequestError(
                f"The flywheel in {self.path} is being turned already.",
                hint="Wait until that turn has ended, or stop it: it goes on where it was.",
            ) from None
        try:
            yield
        finally:
            lock.release()

    def begin(self, model: PromotedModel) -> None:
        """Make the folder, with the model that the flywheel begins with."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_promoted([model])

    def promote(self, model: PromotedModel, words: str) -> None:
        """Make a model the current one. Repeating it changes nothing."""
        promoted = self.promoted()
        if model.turn not in {other.turn for other in promoted}:
            self._write_promoted([*promoted, model])
        self.note("promoted", model.turn, words)

    def roll_back(self) -> PromotedModel:
        """Make the model before the current one current again, and return it.

        Raises:
            RequestError: there is none before it.
        """
        *before, last = [*self.promoted()] or [self.current]
        if not before:
            raise RequestError(
                "There is no model before the current one.", hint="No turn was promoted yet."
            )
        self._write_promoted(before)
        self.note("rolled back", last.turn, f"the model of turn {before[-1].turn} is current again")
        return before[-1]

    def note(self, event: str, turn: int, words: str) -> None:
        """Add a line to the history, unless the last one says the same."""
        history = self.history()
        if history and (history[-1]["event"], history[-1]["turn"]) == (event, turn):
            return
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        history.append({"at": at, "turn": turn, "event": event, "words": words})
        lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in history)
        write_atomically(self.path / _HISTORY, lines)

    def history(self) -> list[dict[str, Any]]:
        """The lines of the history: at, turn, event, words."""
        file = self.path / _HISTORY
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def open_turn(self, job: dict[str, Any]) -> TurnFolder:
        """The turn that is under way, if it has the same job; else a new one.

        Args:
            job: what the turn depends on, of JSON's types.
        """
        numbers = [entry["turn"] for entry in self.history()]
        number = max(numbers, default=0) + 1
        folder = self.path / "turns" / f"{number:04}"
        written = json.dumps(job, indent=2, sort_keys=True) + "\n"
        kept = folder / _JOB
        if kept.is_file() and kept.read_text(encoding="utf-8") != written:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, written)
        return TurnFolder(folder, number)

    def _write_promoted(self, models: list[PromotedModel]) -> None:
        values = [model.to_json() for model in models]
        write_atomically(self.path / _CURRENT, json.dumps(values, indent=2) + "\n")


@dataclass(frozen=True)
class TurnFolder:
    """One turn: what its finished steps came to.

    Attributes:
        path: its folder.
        number: from 1.
    """

    path: Path
    number: int

    def result(self, step: str) -> dict[str, Any] | None:
        """What a step came to; None where it is not finished."""
        file = self.path / f"{step}.json"
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def finish(self, step: str, result: dict[str, Any]) -> dict[str, Any]:
        """Write down what a step came to; it is finished from then on."""
        text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.path / f"{step}.json", text)
        return result


def _promoted_from(value: dict[str, Any]) -> PromotedModel:
    adapter, profile = (
        None if value[name] is None else Path(value[name]) for name in ("adapter", "profile")
    )
    return PromotedModel(
        int(value["turn"]), Path(value["checkpoint"]), Path(value["bundle"]), adapter, profile
    )
