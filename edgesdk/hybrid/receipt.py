"""What an answer of the hybrid client took, whoever gave it."""

from __future__ import annotations

from dataclasses import dataclass

from edgesdk.hybrid.records.decision import Route
from edgesdk.hybrid.spending.limits import Cost
from edgesdk.overflow import Overflow
from edgesdk.receipt import Receipt


@dataclass(frozen=True)
class Timing:
    """Of one answer, in seconds from the request.

    Attributes:
        seconds: to its end.
        first_piece: to the first piece of the answer that stands, of a draft that was withdrawn
            none; None where there is no piece.
        peak_memory_bytes: most resident memory that the process had by the end.
    """

    seconds: float = 0.0
    first_piece: float | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class HybridReceipt:
    """Where an answer came from, and what it took. None stands for "not measured".

    Attributes:
        route: who answered.
        reason: why it was that one, in a few words.
        low_confidence: see `HybridReply`.
        confidence: in the device's draft, 0 to 1; None where none was made.
        cost: of the cloud's part.
        seconds: from the request to the end of the answer.
        time_to_first_token: to the first piece of the answer that stands.
        tokens_per_second: after the first token; of a cloud's answer, as fast as it was read.
        prompt_tokens, output_tokens: as the one who answered counts them.
        cached_tokens: tokens of the prompt that the device's KV cache held.
        finish_reason: why the answer ended.
        endpoint: who answered in the cloud.
        attempts: how many requests that took; 0 without the cloud.
        device_asked: what was asked for when the model was loaded; `device` is what it got. None
            where the device made no draft.
        peak_memory_bytes: most resident memory that this process ever had.
        local: the receipt of the device's draft, also where the cloud answered.
    """

    route: Route
    reason: str
    low_confidence: bool
    confidence: float | None
    cost: Cost
    seconds: float
    time_to_first_token: float | None
    tokens_per_second: float | None
    prompt_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    finish_reason: str
    endpoint: str | None
    attempts: int
    device_asked: str | None
    device: str | None
    peak_memory_bytes: int | None
    local: Receipt | None

    @property
    def overflow(self) -> Overflow | None:
        """What the device left out of the conversation that it answered; None where it answered
        all of it, or the cloud did."""
        return self.local.overflow if self.local is not None and self.route == "local" else None

    def line(self) -> str:
        """One line for people."""
        who = "here" if self.route == "local" else f"by {self.endpoint}"
        counted = "not counted"
        if self.prompt_tokens is not None and self.output_tokens is not None:
            counted = f"{self.prompt_tokens:,} tokens in, {self.output_tokens:,} out"
        first = "not measured"
        if self.time_to_first_token is not None:
            first = f"{self.time_to_first_token:.2f} s"
        sure = "" if self.confidence is None else f" · confidence {self.confidence:.2f}"
        low = " · low confidence" if self.low_confidence else ""
        shortened = "" if self.overflow is None else f" · {self.overflow.phrase()}"
        money = f" · cost {self.cost.money:.6g}" if self.cost.money else ""
        ended = "" if self.finish_reason == "stop" else f" · ended by {self.finish_reason}"
        return (
            f"answered {who} ({self.reason}){sure}{low} · {counted} · first token {first}"
            f" · {self.seconds:.2f} s in all{money}{shortened}{ended}"
        )
