"""Makes one answer in a worker thread: of the device's model, or of a hybrid client around it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Protocol, TypeAlias

from edgesdk.generation.constraint import Constraint
from edgesdk.generation.loop import Step
from edgesdk.generation.streaming import AsyncChannel
from edgesdk.hybrid.privacy.policy import UploadVerdict
from edgesdk.hybrid.reply import HybridReceipt, HybridReply, LocalDraft, Timing, local_reply
from edgesdk.hybrid.request import HybridRequest, Prefer
from edgesdk.hybrid.request_path import RequestPath
from edgesdk.hybrid.stream import HybridEvent, Steps
from edgesdk.receipt import receipt_of
from edgesdk.reply import Reply
from edgesdk.request import Request
from edgesdk.server.metrics import Metrics
from edgesdk.server.model_pool import LoadedModel
from edgesdk.server.responses import AnswerReply

AnswerEvent: TypeAlias = Step | HybridEvent


class AnswerSource(Protocol):
    """Where an answer comes from.

    Attributes:
        may_withdraw: whether pieces of it may be withdrawn, because a cloud may answer instead.
        reason: why nobody else answers, where that is known beforehand.
        prompt_tokens: how many tokens of the device's model the prompt has.
    """

    @property
    def may_withdraw(self) -> bool: ...

    @property
    def reason(self) -> str | None: ...

    @property
    def prompt_tokens(self) -> int: ...

    def answer(self) -> Generator[AnswerEvent, None, AnswerReply | None]:
        """The events of the answer, and its reply, if there is one; for a worker thread."""

    def cancel(self) -> None:
        """End the answer soon; may be called from any thread."""

    def count(self, metrics: Metrics, model: str, reply: AnswerReply) -> None:
        """Count the answer of the model that is served as `model`."""


class RunningAnswer:
    """An answer that a worker thread makes.

    Its client's task cancels it when nobody wants it any more. What it holds (its model, its slot)
    is freed when the worker ends, and by nothing else.

    Attributes:
        reply: how it ended; None until then, and where an error or a cancellation ended it.
    """

    def __init__(self, loaded: LoadedModel, source: AnswerSource) -> None:
        self.loaded = loaded
        self.source = source
        self.reply: AnswerReply | None = None
        self.events: AsyncChannel[AnswerEvent] = AsyncChannel()
        self._error: Exception | None = None

    def cancel(self) -> None:
        """End it soon."""
        self.source.cancel()

    def compute(self) -> None:
        """Make it; for a worker thread. Raises nothing."""
        try:
            with Steps(self.source.answer()) as steps:
                for event in steps:
                    self.events.put(event)
            self.reply = steps.result
        except BaseException as error:
            self._error = contained_error(error)

    def end(self, metrics: Metrics) -> None:
        """Count it, and tell whoever reads its events that it is over; for the event loop."""
        name = self.loaded.model_info.name
        if self.reply is None:
            metrics.count_failure(name)
        else:
            self.source.count(metrics, name, self.reply)
        self.events.end(self._error)


@dataclass(frozen=True)
class DeviceSource:
    """Implements `AnswerSource` with the device's model alone.

    Attributes:
        constraint: holds the answer to a format; None for any text.
        reason: why no cloud is asked; None on a server that has none.
        echo: the prompt comes before the answer, as a part of it.
        answers: whether anything but the prompt is wanted.
    """

    loaded: LoadedModel
    request: Request
    constraint: Constraint | None = None
    reason: str | None = None
    echo: bool = False
    answers: bool = True
    may_withdraw = False

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.tokens)

    def answer(self) -> Generator[AnswerEvent, None, AnswerReply | None]:
        states, runtime = self.loaded.states, self.loaded.model.runtime
        state = states.take(runtime.engine, self.request.tokens)
        text = reasoning = ""
        try:
            for step in runtime.prompt_steps(state, self.request) if self.echo else ():
                text += step.text
                yield step
            generation = runtime.generate(state, self.request, constraint=self.constraint)
            for step in generation:
                if self.answers:
                    text += step.text
                    reasoning += step.reasoning or ""
                    yield step
        except BaseException:
            # After an error nothing is known of the cache for sure.
            state.close()
            raise
        states.release(runtime.engine, state)
        finish = generation.finish
        assert finish is not None, "a generation that ended has a finish"
        finish = finish if self.answers else replace(finish, tokens=())
        receipt = receipt_of(
            finish,
            runtime.engine.info,
            load_seconds=runtime.load_seconds,
            generic_tools=runtime.uses_generic_tools(self.request),
        )
        if self.reason is None:
            return Reply(text, finish.reason, receipt, finish.tokens, reasoning=reasoning)
        draft = LocalDraft(
            text, receipt, signals=None, confidence=None, aborted=False, reasoning=reasoning
        )
        timing = Timing(perf_counter() - self.request.started, receipt.time_to_first_token)
        return replace(local_reply(draft, self.reason), timing=timing)

    def cancel(self) -> None:
        self.request.cancellation.cancel()

    def count(self, metrics: Metrics, model: str, reply: AnswerReply) -> None:
        receipt = reply.receipt
        local = receipt.local if isinstance(receipt, HybridReceipt) else receipt
        assert local is not None, "the device answered"
        metrics.count_answer(model, local)


@dataclass(frozen=True)
class HybridSource:
    """Implements `AnswerSource` with a hybrid client: the device's model, or a cloud.

    Attributes:
        path: of the model's hybrid client.
        verdict: whether the request may leave the device.
    """

    path: RequestPath
    hybrid: HybridRequest
    verdict: UploadVerdict
    prefer: Prefer | None
    reason = None

    @property
    def may_withdraw(self) -> bool:
        return self.path.may_leave(self.verdict, self.prefer)

    @property
    def prompt_tokens(self) -> int:
        return len(self.hybrid.request.tokens)

    def answer(self) -> Generator[AnswerEvent, None, AnswerReply | None]:
        with self.path.answer(self.hybrid, self.verdict, self.prefer) as stream:
            yield from stream
        return None if self.hybrid.request.cancellation.cancelled else stream.reply

    def cancel(self) -> None:
        self.hybrid.request.cancellation.cancel()

    def count(self, metrics: Metrics, model: str, reply: AnswerReply) -> None:
        assert isinstance(reply, HybridReply), "a hybrid client answered"
        metrics.count_route(model, reply.route, reply.cost.money)


def contained_error(error: BaseException) -> Exception:
    """What a worker thread may hand to the event loop.

    A panic in a library written in Rust is no `Exception`, and would end the loop.
    """
    return error if isinstance(error, Exception) else RuntimeError(repr(error))
