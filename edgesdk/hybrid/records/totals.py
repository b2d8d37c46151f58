"""What a journal's entries come to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from edgesdk.hybrid.records.journal import Entry

# Confidences, which would make every reason one of its own.
_FIGURE = re.compile(r" \(\d+\.\d+\)")


@dataclass(frozen=True)
class Totals:
    """Sums over entries.

    Attributes:
        entries: how many there are, of which
        kept: so many were answered on the device.
        begins, ends: when the first and the last was asked, in seconds since the epoch; None
            without any.
        money: that they cost, in the currency of the endpoints' prices.
        cloud_tokens: of prompts and answers in the cloud, as far as counted.
        labelled: how many have a label, of which
        right: so many say that the device's answer was right.
        reasons: how often each was given, the most frequent first; without their figures.
    """

    entries: int = 0
    kept: int = 0
    begins: float | None = None
    ends: float | None = None
    money: float = 0.0
    cloud_tokens: int = 0
    labelled: int = 0
    right: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def kept_share(self) -> float | None:
        """Share that was answered on the device; None without entries."""
        return self.kept / self.entries if self.entries else None


def totals_of(entries: Iterable[Entry]) -> Totals:
    """The sums over `entries`, each of which is looked at once."""
    count = kept = tokens = labelled = right = 0
    money = 0.0
    begins: float | None = None
    ends: float | None = None
    reasons: Counter[str] = Counter()
    for entry in entries:
        decision = entry.decision
        count += 1
        begins = decision.at if begins is None else min(begins, decision.at)
        ends = decision.at if ends is None else max(ends, decision.at)
        money += decision.money
        if decision.route == "local":
            kept += 1
        else:
            tokens += decision.prompt_tokens + decision.output_tokens
        labelled += entry.right is not None
        right += entry.right is True
        reasons[_FIGURE.sub("", decision.reason)] += 1
    return Totals(
        count, kept, begins, ends, money, tokens, labelled, right, dict(reasons.most_common())
    )
