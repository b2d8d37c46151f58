"""Totals and training sets from a journal's entries."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from edgesdk.hybrid.storage.journal import JournalEntry

# Confidences, which would make every reason one of its own.
_FIGURE = re.compile(r" \(\d+\.\d+\)")


@dataclass(frozen=True)
class JournalTotals:
    """Sums over entries.

    Attributes:
        entries: how many there are.
        local: how many were answered on the device.
        first_at, last_at: when the first and the last was asked, in seconds since the epoch; None
            without any.
        money: that they cost, in the currency of the endpoints' prices.
        cloud_tokens: of prompts and replies in the cloud, as far as counted.
        labelled: how many have a label.
        right: how many labels say that the device's reply was right.
        reasons: how often each was given, the most frequent first; without their figures.
    """

    entries: int = 0
    local: int = 0
    first_at: float | None = None
    last_at: float | None = None
    money: float = 0.0
    cloud_tokens: int = 0
    labelled: int = 0
    right: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def local_share(self) -> float | None:
        """The share that was answered on the device; None without entries."""
        return self.local / self.entries if self.entries else None


def totals_of(entries: Iterable[JournalEntry]) -> JournalTotals:
    """Sum over `entries`, reading each of them once."""
    count = local = tokens = labelled = right = 0
    money = 0.0
    first_at: float | None = None
    last_at: float | None = None
    reasons: Counter[str] = Counter()
    for entry in entries:
        decision = entry.decision
        count += 1
        first_at = decision.at if first_at is None else min(first_at, decision.at)
        last_at = decision.at if last_at is None else max(last_at, decision.at)
        money += decision.money
        if decision.route == "local":
            local += 1
        else:
            tokens += decision.prompt_tokens + decision.output_tokens
        labelled += entry.right is not None
        right += entry.right is True
        reasons[_FIGURE.sub("", decision.reason)] += 1
    return JournalTotals(
        count, local, first_at, last_at, money, tokens, labelled, right, dict(reasons.most_common())
    )


@dataclass(frozen=True)
class TrainingSet:
    """Conversations that end with the cloud's answer.

    Attributes:
        examples: {"messages": [...]} each, as fine-tuning tools and the APIs of clouds take them.
        without_text: how many of the cloud's replies are left out because no text was kept.
        unfinished: how many because they are incomplete.
        repeated: how many because the same prompt was answered again later.
    """

    examples: list[dict[str, Any]]
    without_text: int
    unfinished: int
    repeated: int


def training_set(entries: Iterable[JournalEntry]) -> TrainingSet:
    """Collect the examples in `entries`, in the order in which their prompts came first.

    Only answers that the cloud finished are targets. Of several answers to the same prompt the
    newest is taken.
    """
    newest: dict[str, dict[str, Any]] = {}
    without_text = unfinished = repeated = 0
    for entry in entries:
        if entry.decision.route != "cloud":
            continue
        texts = entry.texts
        messages = None if texts is None else texts.messages
        if texts is None or messages is None or not texts.cloud:
            without_text += 1
        elif entry.decision.finish_reason != "stop":
            unfinished += 1
        else:
            repeated += entry.prompt in newest
            target = {"role": "assistant", "content": texts.cloud}
            newest[entry.prompt] = {"messages": [*messages, target]}
    return TrainingSet(list(newest.values()), without_text, unfinished, repeated)
