"""Keep what models answered on disk, so that each question is asked once.

Each answer is a line of JSON in the file of its model, flushed to the disk before the next question
is asked: a kill loses at most the line that was being written. The steps of an answer are kept and
not the signals made of them, so a new signal needs no new answers.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from edgesdk.engines.base import HiddenStates
from edgesdk.hybrid.confidence.confidence import Signals, TokenStats, signals_of

Question = TypeVar("Question", contravariant=True)

# A step with the likeliest tokens, (id, log-probability), for signals that are not thought of yet.
Likeliest = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Try:
    """One more answer to the same prompt, drawn by chance."""

    answer: str
    right: bool
    steps: tuple[TokenStats, ...]

    @property
    def signals(self) -> Signals:
        """As the client would have seen them."""
        return signals_of(self.steps)


@dataclass(frozen=True)
class Outcome:
    """One answer of one model to one prompt.

    Attributes:
        key: of the model and all that it was told.
        model: its name, for people; the key has its hash.
        answer: as the model wrote it,
        right: and whether it was.
        finish: why it ended there.
        prompt_tokens, output_tokens: how many there were.
        seconds: it took, the part of the prompt that was in the KV cache excepted.
        steps: what each step of the decoding left; none where the model is behind an endpoint.
        likeliest: of each step.
        tries: more answers, where some were asked for.
        state: that it ended in, as `written_state` puts it; empty where the engine gives none.
    """

    key: str
    model: str
    family: str
    level: int
    split: str
    seed: int
    question: str
    answer: str
    right: bool
    finish: str
    prompt_tokens: int
    output_tokens: int
    seconds: float
    steps: tuple[TokenStats, ...]
    likeliest: tuple[Likeliest, ...]
    tries: tuple[Try, ...] = ()
    state: str = ""

    @property
    def signals(self) -> Signals:
        """As the client would have seen them."""
        return signals_of(self.steps)

    @property
    def hidden_state(self) -> HiddenStates | None:
        """float32 [hidden]."""
        if not self.state:
            return None
        return np.frombuffer(base64.b64decode(self.state), np.float16).astype(np.float32)


def written_state(state: HiddenStates | None) -> str:
    """A hidden state, float32 [hidden], in half the precision and in letters."""
    return "" if state is None else base64.b64encode(state.astype(np.float16).tobytes()).decode()


class OutcomeStore:
    """Where outcomes are kept, in one file. For one writer at a time; see `outcomes_in`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()
        self._keys = {outcome.key for outcome in outcomes_in(path)}

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def append(self, outcome: Outcome) -> None:
        """Keep an outcome; it is on the disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._keys.add(outcome.key)

    def _drop_torn_line(self) -> None:
        """Cut what a kill left half-written at the end."""
        self._path.touch()
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self._path.open("r+b") as file:
                file.truncate(whole)


def outcomes_in(path: Path) -> list[Outcome]:
    """Those in the file of a store, in order; its writer may be at work."""
    lines = path.read_bytes().split(b"\n")
    # What follows the last line's end is not written yet.
    return [_outcome(json.loads(line)) for line in lines[:-1]]


class Asker(Protocol[Question]):
    """Who answers."""

    def key(self, question: Question) -> str:
        """Of the outcome: another model or another wording has another one."""

    def ask(self, question: Question) -> Outcome:
        """Answer."""


def collect(
    asker: Asker[Question],
    questions: Iterable[Question],
    store: OutcomeStore,
    note: Callable[[Outcome], None],
) -> None:
    """Ask what the store does not have; `note` is told of each new outcome."""
    for question in questions:
        if asker.key(question) not in store:
            outcome = asker.ask(question)
            store.append(outcome)
            note(outcome)


def _outcome(stored: dict[str, Any]) -> Outcome:
    stored["steps"] = tuple(TokenStats(*step) for step in stored["steps"])
    stored["likeliest"] = tuple(
        tuple((int(token), float(chance)) for token, chance in step) for step in stored["likeliest"]
    )
    stored["tries"] = tuple(
        Try(one["answer"], one["right"], tuple(TokenStats(*step) for step in one["steps"]))
        for one in stored.get("tries", ())
    )
    return Outcome(**stored)
