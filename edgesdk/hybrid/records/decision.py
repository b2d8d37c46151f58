"""What is written down of one request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Route = Literal["local", "cloud", "audit"]


@dataclass(frozen=True)
class Decision:
    """Why a request was answered where it was. It has no text of the user's or the model's.

    Attributes:
        at: seconds since the epoch.
        route: who answered; "audit" where an answer of the device that was given already is
            compared with the cloud's.
        reason: why, in a few words of the SDK's own.
        upload: the privacy rule that held.
        kinds: of what the detectors found, in order.
        confidence: in the local answer, 0 to 1; None where none was made.
        signals: read off the local answer, by name.
        gate: what kept the device from trying; see `edgesdk.hybrid.reply.HybridReply`.
        bundle: hash of the local model's bundle.
        endpoint: who answered in the cloud; empty where none did.
        doubted: the local answer is not to be kept, whatever its confidence; see
            `edgesdk.hybrid.reply.LocalDraft`.
        calibration: id of the one whose promise was audited; empty where there was none.
        agreed: whether the cloud's answer says the same as the local one; None where that was not
            audited, or could not be.
        prompt_tokens, output_tokens: of the answer that was given.
        money: that it cost, in the currency of the endpoint's prices.
        seconds: from the request to the end of the answer.
        finish: how the answer that was given ended, in the words of who gave it ("stop" where it
            is whole).
    """

    at: float
    route: Route
    reason: str
    upload: str
    kinds: tuple[str, ...] = ()
    confidence: float | None = None
    signals: dict[str, float] = field(default_factory=dict)
    gate: str = ""
    bundle: str = ""
    endpoint: str = ""
    doubted: bool = False
    calibration: str = ""
    agreed: bool | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    money: float = 0.0
    seconds: float = 0.0
    finish: str = ""


@dataclass(frozen=True)
class Texts:
    """What the app chose to keep of a request, to learn from. None is not kept.

    Attributes:
        prompt: the messages as JSON.
        local, cloud: the answers.
        right: whether the local answer was, where somebody said.
    """

    prompt: str
    local: str | None = None
    cloud: str | None = None
    right: bool | None = None
