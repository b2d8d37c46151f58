"""A journal's texts as a training set: what the cloud had to answer, the device is to learn."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgesdk.hybrid.records.journal import Entry


@dataclass(frozen=True)
class TrainingSet:
    """Conversations that end with the cloud's answer.

    Attributes:
        examples: {"messages": [...]} each, as fine-tuning tools and the APIs of clouds take them.
        without_text: how many of the cloud's answers are no example because no text was kept,
        unfinished: because the answer is not whole,
        repeated: or because the same prompt was answered again later.
    """

    examples: list[dict[str, Any]]
    without_text: int
    unfinished: int
    repeated: int


def training_set(entries: Iterable[Entry]) -> TrainingSet:
    """The examples in `entries`, in the order in which their prompts came first.

    Only answers that the cloud finished are targets. Of several answers to the same prompt the
    newest is taken.
    """
    newest: dict[str, dict[str, Any]] = {}
    without_text = unfinished = repeated = 0
    for entry in entries:
        if entry.decision.route != "cloud":
            continue
        texts = entry.texts
        messages = None if texts is None else _messages(texts.prompt)
        if texts is None or messages is None or not texts.cloud:
            without_text += 1
        elif entry.decision.finish != "stop":
            unfinished += 1
        else:
            repeated += entry.prompt in newest
            target = {"role": "assistant", "content": texts.cloud}
            newest[entry.prompt] = {"messages": [*messages, target]}
    return TrainingSet(list(newest.values()), without_text, unfinished, repeated)


def _messages(prompt: str) -> list[Any] | None:
    """A conversation as the client writes it down; None where an app wrote something else."""
    try:
        found = json.loads(prompt)
    except ValueError:
        return None
    return found if isinstance(found, list) and found else None
