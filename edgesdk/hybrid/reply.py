"""What the hybrid client answers with: the reply, its receipt and its stream."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from edgesdk.engines.base import HiddenStates
from edgesdk.errors import FailedAttempt, StructureError
from edgesdk.hybrid.cloud.cloud_reply import CloudReply
from edgesdk.hybrid.cloud.spending import Cost
from edgesdk.hybrid.cloud.wire import Usage
from edgesdk.hybrid.confidence.confidence import Signals
from edgesdk.hybrid.storage.journal import Route
from edgesdk.overflow import Overflow
from edgesdk.receipt import Receipt
from edgesdk.tools.call_messages import call_message
from edgesdk.tools.calls import ToolCall, ToolCalls


@dataclass(frozen=True)
class Timing:
    """How long one answer took, in seconds from the request.

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
class LocalDraft:
    """The device's answer, before it is decided whether to keep it.

    Attributes:
        signals: read off its logits; None where it has no token.
        confidence: in it, 0 to 1; None where it has no token.
        aborted: it was ended early, because it was predicted to be wrong.
        predicted_wrong: while it was made, it was predicted to be wrong, so it is not kept, aborted
            or not: whether an answer is kept does not depend on who else could be asked.
        agreement: how far the device's other answers say the same, 0 to 1, if it was asked
            several times; the confidence knows of it.
        answers: how often it was asked.
        parsed: its value, where there is an output format.
        calls: of tools.
        format_error: why it does not fit the output format.
        hidden_state: that it ended in, float32 [hidden]; None where the engine gives none.
        partial_signals: its signals each time that aborting it was considered.
        reasoning: what the model thought before it answered. Nothing else here knows of it: an
            answer is judged by itself.
    """

    text: str
    receipt: Receipt
    signals: Signals | None
    confidence: float | None
    aborted: bool
    predicted_wrong: bool = False
    agreement: float | None = None
    answers: int = 1
    parsed: Any = None
    calls: ToolCalls = field(default_factory=ToolCalls)
    format_error: StructureError | None = None
    hidden_state: HiddenStates | None = field(default=None, compare=False, repr=False)
    partial_signals: tuple[Signals, ...] = field(default=(), repr=False)
    reasoning: str = ""

    @property
    def complete(self) -> bool:
        """Whether it is a whole answer: nothing ended it but the model, a stop text or its output
        format, and not in its reasoning."""
        ended = self.receipt.finish_reason == "stop" and not self.receipt.ended_in_reasoning
        return ended and not self.aborted

    @property
    def decidable(self) -> bool:
        """Whether its confidence decides if it is kept. An answer that is cut, empty, or predicted
        to be wrong never is."""
        return self.complete and self.confidence is not None and not self.predicted_wrong

    @property
    def measured(self) -> dict[str, float]:
        """All that was measured of the draft, by name; it has no text."""
        values = {} if self.signals is None else asdict(self.signals)
        if self.agreement is not None:
            values |= {"agreement": self.agreement, "answers": self.answers}
        return values

    @property
    def problem(self) -> str | None:
        """Why the draft is of no use, whatever its confidence; None where it is."""
        if self.format_error is not None:
            return "the device's answer does not fit the output format"
        if any(call.problem for call in self.calls):
            return "the device's call does not fit the tools"
        return None

    @property
    def rank(self) -> int:
        """How good it is beside other answers, none of which may be whole; see `answer_rank`."""
        if self.problem is not None or self.aborted:
            return min(1, len(self.text))
        return answer_rank(self.text, self.receipt.finish_reason)

    @property
    def rejection(self) -> str | None:
        """Why the draft is not kept, whatever the threshold, in words; None where the threshold
        decides."""
        if self.receipt.ended_in_reasoning:
            return "the device's answer ended in its reasoning"
        if self.confidence is None:
            return "the device said nothing"
        if self.problem is not None:
            return self.problem
        if self.predicted_wrong or self.complete:
            return None
        return f"the device's answer {cut_phrase(self.receipt.finish_reason)}"


@dataclass(frozen=True)
class HybridReply:
    """An answer, and where it came from.

    Attributes:
        text: with all private values in their places; where the device calls tools, the calls as
            it wrote them.
        route: who answered.
        reason: why it was that one, in a few words.
        rejected_by: what kept the device from trying, in a word: "context", "vision", "hearing",
            "files", "parts", "tools", "template", "hint", "heat", "battery", "speed" or
            "prompt"; empty where it tried.
        low_confidence: do not rely on it. It is a local answer that was not to be kept, because
            the cloud could not or must not be asked; or nobody gave a whole answer (see
            `complete`).
        local: the device's draft; None where none was made.
        cloud: how the cloud's answer ended; None where it did not answer.
        cost: of the cloud's part, also where nothing came of it.
        parsed: the value, where there is an output format.
        tool_calls: the calls of tools that were offered, all of them by the one who answered.
            Arguments fit the tool, unless `problem` says otherwise.
        queued: its number in the queue, where the cloud is asked again later.
        failures: why requests to clouds failed, in order, also where another one was answered.
        timing: how long it took.
    """

    text: str
    route: Route
    reason: str
    low_confidence: bool = False
    local: LocalDraft | None = None
    cloud: CloudReply | None = None
    cost: Cost = field(default_factory=Cost)
    rejected_by: str = ""
    parsed: Any = None
    tool_calls: tuple[ToolCall, ...] = ()
    queued: int | None = None
    failures: tuple[FailedAttempt, ...] = ()
    timing: Timing = field(default_factory=Timing)

    @property
    def reasoning(self) -> str:
        """What the model thought before it answered; a cloud's, where the endpoint gives it."""
        if self.route == "local":
            return "" if self.local is None else self.local.reasoning
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
    def complete(self) -> bool:
        """Whether the answer is whole. It is not where it was cut at its token limit or by the
        deadline, went in a cycle, was filtered, broke off, or was cancelled: see
        `finish_reason`. A whole answer of the device is preferred to half a cloud's."""
        if self.route == "cloud":
            return self.cloud is not None and self.cloud.complete
        return self.local is not None and self.local.complete

    @property
    def rank(self) -> int:
        """How good it is beside other answers; see `answer_rank`."""
        return answer_rank(self.text, self.finish_reason)

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message of the conversation, in the form of OpenAI's API; see
        `edgesdk.reply.Reply.message`."""
        words = self.text
        calls = self.tool_calls
        if calls and self.route == "local":
            words = calls.words if isinstance(calls, ToolCalls) else ""
        return call_message(words, calls, self.reasoning)

    @property
    def receipt(self) -> HybridReceipt:
        """What it took."""
        return HybridReceipt(self)


@dataclass(frozen=True)
class HybridReceipt:
    """Where an answer came from, and what it took: a view of its reply.

    None stands for "not measured".
    """

    reply: HybridReply

    @property
    def route(self) -> Route:
        """Who answered."""
        return self.reply.route

    @property
    def reason(self) -> str:
        """Why it was that one, in a few words."""
        return self.reply.reason

    @property
    def low_confidence(self) -> bool:
        """See `HybridReply`."""
        return self.reply.low_confidence

    @property
    def complete(self) -> bool:
        """See `HybridReply`."""
        return self.reply.complete

    @property
    def confidence(self) -> float | None:
        """In the device's draft, 0 to 1; None where none was made."""
        return None if self.reply.local is None else self.reply.local.confidence

    @property
    def cost(self) -> Cost:
        """Of the cloud's part."""
        return self.reply.cost

    @property
    def seconds(self) -> float:
        """From the request to the end of the answer."""
        return self.reply.timing.seconds

    @property
    def time_to_first_token(self) -> float | None:
        """To the first piece of the answer that stands."""
        return self.reply.timing.first_piece

    @property
    def tokens_per_second(self) -> float | None:
        """After the first token; of a cloud's answer, as fast as it was read."""
        if self.reply.cloud is None:
            return None if self._on_device is None else self._on_device.tokens_per_second
        output, first = self.output_tokens, self.time_to_first_token
        if first is None or not output or output < 2 or self.seconds <= first:
            return None
        return (output - 1) / (self.seconds - first)

    @property
    def prompt_tokens(self) -> int | None:
        """As the one who answered counts them."""
        if self._on_device is not None:
            return self._on_device.prompt_tokens
        return None if self._usage is None else self._usage.prompt_tokens

    @property
    def output_tokens(self) -> int | None:
        """As the one who answered counts them."""
        if self._on_device is not None:
            return self._on_device.output_tokens
        return None if self._usage is None else self._usage.completion_tokens

    @property
    def reasoning_tokens(self) -> int | None:
        """Of `output_tokens`, those of the reasoning; None where a cloud does not count them."""
        return None if self._on_device is None else self._on_device.reasoning_tokens

    @property
    def cached_tokens(self) -> int | None:
        """Tokens of the prompt that the device's KV cache held."""
        return None if self._on_device is None else self._on_device.cached_tokens

    @property
    def finish_reason(self) -> str:
        """Why the answer ended."""
        return self.reply.finish_reason

    @property
    def endpoint(self) -> str | None:
        """Who answered in the cloud."""
        return None if self.reply.cloud is None else self.reply.cloud.endpoint

    @property
    def attempts(self) -> int:
        """How many requests to clouds were made."""
        cloud = self.reply.cloud
        return len(self.failures) if cloud is None else cloud.attempts

    @property
    def failures(self) -> tuple[FailedAttempt, ...]:
        """Why requests to clouds failed: status, the endpoint's code and its message, which has
        neither secrets nor the request's text."""
        return self.reply.failures

    @property
    def local(self) -> Receipt | None:
        """The receipt of the device's draft, also where the cloud answered."""
        return None if self.reply.local is None else self.reply.local.receipt

    @property
    def requested_device(self) -> str | None:
        """What was asked for when the model was loaded; `device` is what it got. None where the
        device made no draft."""
        return None if self.local is None else self.local.requested_device

    @property
    def device(self) -> str | None:
        """Where the device's model ran."""
        return None if self.local is None else self.local.device

    @property
    def peak_memory_bytes(self) -> int | None:
        """Most resident memory that this process ever had."""
        return self.reply.timing.peak_memory_bytes

    @property
    def overflow(self) -> Overflow | None:
        """What the device left out of the conversation that it answered; None where it answered
        all of it, or the cloud did."""
        return None if self._on_device is None else self._on_device.overflow

    @property
    def _on_device(self) -> Receipt | None:
        return self.local if self.route == "local" else None

    @property
    def _usage(self) -> Usage | None:
        return None if self.reply.cloud is None else self.reply.cloud.usage

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


# Why an answer is not whole, as the end of a sentence, by its finish reason.
_CUT_PHRASES = {
    "length": "was cut at its token limit",
    "repetition": "went in a cycle",
    "deadline": "was cut by the deadline",
    "content_filter": "was filtered",
    "cancelled": "was cancelled",
}


def answer_rank(text: str, finish_reason: str) -> int:
    """Order answers by what there is of them: 0 for nothing, 1 for one that broke off, 2 for one
    that is cut at its token limit, 3 for a whole one."""
    if not text.strip():
        return 0
    return {"stop": 3, "tool_calls": 3, "length": 2}.get(finish_reason, 1)


def cut_phrase(finish_reason: str) -> str:
    """Say why an answer is not whole, as the end of a sentence."""
    return _CUT_PHRASES.get(finish_reason, "broke off")


def local_reply(
    draft: LocalDraft,
    reason: str,
    *,
    low_confidence: bool = False,
    cost: Cost | None = None,
    rejected_by: str = "",
    queued: int | None = None,
    failures: tuple[FailedAttempt, ...] = (),
) -> HybridReply:
    """Make a reply of the device's draft; see `HybridReply`.

    Raises:
        StructureError: the draft does not fit the output format.
    """
    if draft.format_error is not None:
        raise draft.format_error
    return HybridReply(
        draft.text, "local", reason, low_confidence or not draft.complete, draft,
        cost=cost or Cost(),
        rejected_by=rejected_by, parsed=draft.parsed, tool_calls=draft.calls, queued=queued,
        failures=failures,
    )  # fmt: skip
