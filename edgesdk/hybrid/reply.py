"""What the hybrid client answers with."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgesdk.hybrid.cloud.answer import CloudAnswer
from edgesdk.hybrid.records.decision import Route
from edgesdk.hybrid.spending.limits import Cost
from edgesdk.hybrid.trust.signals import Signals
from edgesdk.receipt import Receipt


@dataclass(frozen=True)
class LocalDraft:
    """What the device made of a prompt.

    Attributes:
        signals: read off its logits; None where it has no token.
        confidence: in it, 0 to 1; None where it has no token.
        given_up: it was ended half-way, because it would not have been kept.
    """

    text: str
    receipt: Receipt
    signals: Signals | None
    confidence: float | None
    given_up: bool


@dataclass(frozen=True)
class HybridReply:
    """An answer, and where it came from.

    Attributes:
        text: with all private values in their places.
        route: who answered.
        reason: why it was that one, in a few words.
        low_confidence: it is a local answer that was not to be kept, because the cloud could not
            or must not be asked.
        local: the device's draft; None where none was made.
        cloud: how the cloud's answer ended; None where it did not answer.
        cost: of the cloud's part, also where nothing came of it.
        queued: its number in the queue, where the cloud is asked again later.
    """

    text: str
    route: Route
    reason: str
    low_confidence: bool = False
    local: LocalDraft | None = None
    cloud: CloudAnswer | None = None
    cost: Cost = field(default_factory=Cost)
    queued: int | None = None
