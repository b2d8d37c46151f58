"""What the hybrid client answers with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from edgesdk.engines.base import HiddenStates
from edgesdk.errors import StructureError
from edgesdk.hybrid.cloud.answer import CloudAnswer
from edgesdk.hybrid.receipt import HybridReceipt, Timing
from edgesdk.hybrid.records.decision import Route
from edgesdk.hybrid.spending.limits import Cost
from edgesdk.hybrid.trust.signals import Signals
from edgesdk.receipt import Receipt
from edgesdk.tools.calls import ToolCall, ToolCalls, words_before_calls
from edgesdk.tools.messages import call_message


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
        parsed: its value, where a form was asked for.
        calls: of tools.
        fault: why it has not the form that was asked for.
        hidden_state: that it ended in, float32 [hidden]; None where the engine gives none.
        halfway: its signals as they were each time that giving it up was considered.
    """

    text: str
    receipt: Receipt
    signals: Signals | None
    confidence: float | None
    given_up: bool
    doubted: bool = False
    agreement: float | None = None
    answers: int = 1
    parsed: Any = None
    calls: ToolCalls = field(default_factory=ToolCalls)
    fault: StructureError | None = None
    hidden_state: HiddenStates | None = field(default=None, compare=False, repr=False)
    halfway: tuple[Signals, ...] = field(default=(), repr=False)

    @property
    def measured(self) -> dict[str, float]:
        """All that was measured of it, by name; it has no text."""
        found = {} if self.signals is None else asdict(self.signals)
        if self.agreement is not None:
            found |= {"agreement": self.agreement, "answers": self.answers}
        return found

    @property
    def trouble(self) -> str | None:
        """Why it is of no use, however sure the device was."""
        if self.fault is not None:
            return "the device's answer has not the form"
        if any(call.problem for call in self.calls):
            return "the device's call does not fit the tools"
        return None


@dataclass(frozen=True)
class HybridReply:
    """An answer, and where it came from.

    Attributes:
        text: with all private values in their places; where the device calls tools, the calls as
            it wrote them.
        route: who answered.
        reason: why it was that one, in a few words.
        gate: what kept the device from trying, in a word: "context", "vision", "hearing",
            "files", "parts", "tools", "template", "hint", "heat", "battery", "speed" or
            "prompt"; empty where it tried.
        low_confidence: it is a local answer that was not to be kept, because the cloud could not
            or must not be asked.
        local: the device's draft; None where none was made.
        cloud: how the cloud's answer ended; None where it did not answer.
        cost: of the cloud's part, also where nothing came of it.
        parsed: the value, where a schema or another form was asked for.
        tool_calls: the calls of tools that were offered, all of them by the one who answered.
            Arguments fit the tool, unless `problem` says otherwise.
        queued: its number in the queue, where the cloud is asked again later.
        timing: how long it took.
    """

    text: str
    route: Route
    reason: str
    low_confidence: bool = False
    local: LocalDraft | None = None
    cloud: CloudAnswer | None = None
    cost: Cost = field(default_factory=Cost)
    gate: str = ""
    parsed: Any = None
    tool_calls: tuple[ToolCall, ...] = ()
    queued: int | None = None
    timing: Timing = field(default_factory=Timing)

    @property
    def reasoning(self) -> str:
        """What the cloud's model thought before it answered, where the endpoint tells."""
        return "" if self.cloud is None else self.cloud.reasoning

    @property
    def finish_reason(self) -> str:
        """Why the answer ended: the device's reasons, or the endpoint's own; "tool_calls" where
        it waits for the results of `tool_calls`."""
        if self.route == "cloud" and self.cloud is None:
            return "cancelled"
        ended = self.cloud or (self.local and self.local.receipt)
        assert ended, "somebody answered"
        return "tool_calls" if self.tool_calls and ended.finish_reason == "stop" else (
            ended.finish_reason
        )  # fmt: skip

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message of the conversation, in the form of OpenAI's API."""
        words = self.text
        if self.tool_calls and self.route == "local":
            words = words_before_calls(self.text)
        return call_message(words, self.tool_calls)

    @property
    def receipt(self) -> HybridReceipt:
        """What it took."""
        here = None if self.local is None else self.local.receipt
        output, timing = self._tokens("completion_tokens", "output_tokens"), self.timing
        speed = here.tokens_per_second if here is not None and self.route == "local" else None
        if self.cloud is not None and output and timing.first_piece is not None:
            after = timing.seconds - timing.first_piece
            speed = (output - 1) / after if after > 0 and output > 1 else None
        return HybridReceipt(
            route=self.route,
            reason=self.reason,
            low_confidence=self.low_confidence,
            confidence=None if self.local is None else self.local.confidence,
            cost=self.cost,
            seconds=timing.seconds,
            time_to_first_token=timing.first_piece,
            tokens_per_second=speed,
            prompt_tokens=self._tokens("prompt_tokens", "prompt_tokens"),
            output_tokens=output,
            cached_tokens=here.cached_tokens if here and self.route == "local" else None,
            finish_reason=self.finish_reason,
            endpoint=None if self.cloud is None else self.cloud.endpoint,
            attempts=0 if self.cloud is None else self.cloud.attempts,
            device_asked=None if here is None else here.device_asked,
            device=None if here is None else here.device,
            peak_memory_bytes=timing.peak_memory_bytes,
            local=here,
        )

    def _tokens(self, there: str, here: str) -> int | None:
        if self.route == "cloud":
            usage = None if self.cloud is None else self.cloud.usage
            return None if usage is None else int(getattr(usage, there))
        return None if self.local is None else int(getattr(self.local.receipt, here))


def local_reply(
    draft: LocalDraft,
    reason: str,
    *,
    low_confidence: bool = False,
    cost: Cost | None = None,
    gate: str = "",
    queued: int | None = None,
) -> HybridReply:
    """The device's answer; see `HybridReply`.

    Args:
        cost: of a cloud's answer that was no use.

    Raises:
        StructureError: the draft has not the form that was asked for.
    """
    if draft.fault is not None:
        raise draft.fault
    return HybridReply(
        draft.text, "local", reason, low_confidence, draft, cost=cost or Cost(), gate=gate,
        parsed=draft.parsed, tool_calls=draft.calls, queued=queued,
    )  # fmt: skip
