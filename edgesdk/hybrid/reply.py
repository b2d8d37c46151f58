"""What the hybrid client answers with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

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
        doubted: half-way it looked as if it would not be kept, so it is not, ended or not: whether
            an answer is trusted does not depend on who else could be asked.
        agreement: how far the device's other answers say the same, 0 to 1, if it was asked
            several times; the confidence knows of it.
        answers: how often it was asked.
    """

    text: str
    receipt: Receipt
    signals: Signals | None
    confidence: float | None
    given_up: bool
    doubted: bool = False
    agreement: float | None = None
    answers: int = 1

    @property
    def measured(self) -> dict[str, float]:
        """All that was measured of it, by name; it has no text."""
        found = {} if self.signals is None else asdict(self.signals)
        if self.agreement is not None:
            found |= {"agreement": self.agreement, "answers": self.answers}
        return found


@dataclass(frozen=True)
class HybridReply:
    """An answer, and where it came from.

    Attributes:
        text: with all private values in their places.
        route: who answered.
        reason: why it was that one, in a few words.
        gate: what kept the device from trying, in a word: "context", "vision", "hearing",
            "files", "parts", "tools", "template", "hint", "heat", "battery", "speed" or
            "prompt"; empty where it tried.
        low_confidence: it is a local answer that was not to be kept, because the cloud could not
            or must not be asked.
        local: the device's draft; None where none was made.
        cloud: how the cloud's answer ended; None where it did not answer.
        cost: of the cloud's part.
    """

    text: str
    route: Route
    reason: str
    low_confidence: bool = False
    local: LocalDraft | None = None
    cloud: CloudAnswer | None = None
    cost: Cost = field(default_factory=Cost)
    gate: str = ""
