"""What the hybrid client answers with: the reply, its receipt and its stream."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any, TypeAlias

from edgesdk.engines.base import HiddenStates
from edgesdk.errors import RequestError, StructureError
from edgesdk.generation.scheduling import Cancel
from edgesdk.generation.streaming import AsyncStream
from edgesdk.hybrid.cloud.cloud_reply import CloudReply, ReasoningDelta, Restart, TextDelta
from edgesdk.hybrid.cloud.spending import Cost
from edgesdk.hybrid.confidence.signals import Signals
from edgesdk.hybrid.storage.journal import Route
from edgesdk.overflow import Overflow
from edgesdk.receipt import Receipt, peak_memory_bytes
from edgesdk.system.closing import Closeable
from edgesdk.tools.call_messages import call_message
from edgesdk.tools.calls import ToolCall, ToolCalls, text_before_calls


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
        requested_device: what was asked for when the model was loaded; `device` is what it got.
            None where the device made no draft.
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
    requested_device: str | None
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


@dataclass(frozen=True)
class LocalDraft:
    """What the device made of a prompt.

    Attributes:
        signals: read off its logits; None where it has no token.
        confidence: in it, 0 to 1; None where it has no token.
        aborted: it was ended half-way, because it would not have been kept.
        predicted_wrong: half-way it looked as if it would not be kept, so it is not, ended or not:
            whether an answer is trusted does not depend on who else could be asked.
        agreement: how far the device's other answers say the same, 0 to 1, if it was asked
            several times; the confidence knows of it.
        answers: how often it was asked.
        parsed: its value, where a form was asked for.
        calls: of tools.
        format_error: why it has not the form that was asked for.
        hidden_state: that it ended in, float32 [hidden]; None where the engine gives none.
        partial_signals: its signals as they were each time that giving it up was considered.
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

    @property
    def measured(self) -> dict[str, float]:
        """All that was measured of it, by name; it has no text."""
        found = {} if self.signals is None else asdict(self.signals)
        if self.agreement is not None:
            found |= {"agreement": self.agreement, "answers": self.answers}
        return found

    @property
    def problem(self) -> str | None:
        """Why it is of no use, however sure the device was."""
        if self.format_error is not None:
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
        rejected_by: what kept the device from trying, in a word: "context", "vision", "hearing",
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
    cloud: CloudReply | None = None
    cost: Cost = field(default_factory=Cost)
    rejected_by: str = ""
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
            words = text_before_calls(self.text)
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
            requested_device=None if here is None else here.requested_device,
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
    rejected_by: str = "",
    queued: int | None = None,
) -> HybridReply:
    """The device's answer; see `HybridReply`.

    Args:
        cost: of a cloud's answer that was no use.

    Raises:
        StructureError: the draft has not the form that was asked for.
    """
    if draft.format_error is not None:
        raise draft.format_error
    return HybridReply(
        draft.text, "local", reason, low_confidence, draft, cost=cost or Cost(),
        rejected_by=rejected_by, parsed=draft.parsed, tool_calls=draft.calls, queued=queued,
    )  # fmt: skip


HybridEvent: TypeAlias = TextDelta | ReasoningDelta | Restart
AnswerSteps: TypeAlias = Generator[HybridEvent, None, HybridReply]


class HybridStream(Closeable, Iterator[HybridEvent]):
    """Pieces of an answer. After a `Restart` all pieces before it are void: another answers.

    A `ReasoningDelta` is what the cloud's model reasons, and no part of the answer. Iterate it in
    one thread; `cancel` may be called from any.

    Args:
        steps: the answer.
        cancel: what `steps` looks at.
        on_end: called once, with the reply, or with None where there is none or it was cancelled.
    """

    def __init__(
        self, steps: AnswerSteps, cancel: Cancel, on_end: Callable[[HybridReply | None], None]
    ) -> None:
        self._steps = steps
        self._cancel = cancel
        self._on_end = on_end
        self._ended = False
        self._started = perf_counter()
        self._first: float | None = None
        self._reply: HybridReply | None = None

    def __next__(self) -> HybridEvent:
        try:
            event = next(self._steps)
        except StopIteration as end:
            if end.value is not None:
                self._reply = replace(end.value, timing=self._timing())
            self._end()
            raise StopIteration from None
        except BaseException:
            self._end()
            raise
        if isinstance(event, Restart):
            self._first = None
        elif isinstance(event, TextDelta) and self._first is None:
            self._first = perf_counter() - self._started
        return event

    @property
    def reply(self) -> HybridReply:
        """The whole answer.

        Raises:
            RequestError: it was not read to its end.
        """
        if self._reply is None:
            raise RequestError("The answer was not read to its end.", hint="Iterate it first.")
        return self._reply

    def cancel(self) -> None:
        """End the answer at once, whatever it is at; the stream then ends with what is there."""
        self._cancel.set()

    def close(self) -> None:
        """End the answer here; for the thread that iterates it."""
        self._steps.close()
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._on_end(None if self._cancel.is_set() else self._reply)

    def __del__(self) -> None:
        self.close()

    def _timing(self) -> Timing:
        return Timing(perf_counter() - self._started, self._first, peak_memory_bytes())


AsyncHybridStream: TypeAlias = AsyncStream[HybridEvent, HybridReply]
