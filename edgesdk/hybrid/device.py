"""The device's part of an answer: a draft, and more tries where it is unsure."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from edgesdk.decode.options import Options
from edgesdk.engines.base import Sequence
from edgesdk.errors import ContextOverflow, DeadlineExceeded
from edgesdk.hybrid.cloud.answer import Piece, Restart
from edgesdk.hybrid.cloud.clock import Deadline
from edgesdk.hybrid.drafting import draft
from edgesdk.hybrid.effort.effort import Effort, insist
from edgesdk.hybrid.gate.keeper import Gatekeeper
from edgesdk.hybrid.reply import LocalDraft
from edgesdk.hybrid.trust.confidence import Confidence
from edgesdk.runtime import Runtime
from edgesdk.scheduling import Cancel

Messages = list[dict[str, Any]]


class Device:
    """Answers with one model. Several threads may use it.

    Args:
        keeper: is told how fast the answers were.
        effort: None for one answer each.
    """

    def __init__(self, runtime: Runtime, keeper: Gatekeeper, effort: Effort | None) -> None:
        self._runtime = runtime
        self._keeper = keeper
        self._effort = effort

    def answer(
        self,
        messages: Messages,
        options: Options,
        confidence: Confidence,
        cancel: Cancel,
        *,
        others: bool,
    ) -> Generator[Piece | Restart, None, LocalDraft]:
        """Yield the answer as it comes; return what it was.

        Args:
            others: whether anyone else could answer.

        Raises:
            RequestError: the messages need more than a model of text has.
            ContextOverflow, EmptyPrompt, TemplateError, EngineError, DeadlineExceeded: see
                `edgesdk.hybrid.drafting.draft`.
        """
        deadline = Deadline(options.deadline)
        told = self._keeper.told(messages)
        sequence = self._runtime.engine.sequence()
        try:
            first = yield from self._shown(
                told, options, confidence, cancel, sequence, others=others
            )
            self._keeper.learn(first.receipt)
            effort = self._effort
            if effort is None or not effort.worth(first, confidence, others=others):
                return first

            def again(options: Options, instruction: str | None) -> LocalDraft | None:
                asked = _instructed(told, instruction)
                return self._unseen(asked, options, confidence, cancel, sequence)

            best = insist(first, again, options, confidence, effort, deadline)
        finally:
            sequence.close()
        if best.text != first.text:
            yield Restart("the device's answers agree on another")
            yield Piece(best.text)
        return best

    def _shown(
        self,
        told: Messages,
        options: Options,
        confidence: Confidence,
        cancel: Cancel,
        sequence: Sequence,
        *,
        others: bool,
    ) -> Generator[Piece, None, LocalDraft]:
        steps = draft(
            self._runtime, told, options, confidence,
            may_give_up=others, cancel=cancel, sequence=sequence,
        )  # fmt: skip
        try:
            while True:
                yield Piece(next(steps))
        except StopIteration as end:
            found: LocalDraft = end.value
            return found
        finally:
            steps.close()

    def _unseen(
        self,
        told: Messages,
        options: Options,
        confidence: Confidence,
        cancel: Cancel,
        sequence: Sequence,
    ) -> LocalDraft | None:
        """One more answer; None where it did not come to its end. The prompt is in the KV cache."""
        steps = self._shown(told, options, confidence, cancel, sequence, others=False)
        try:
            while True:
                next(steps)
        except StopIteration as end:
            found: LocalDraft = end.value
        except (DeadlineExceeded, ContextOverflow):
            return None
        return found if found.receipt.finish_reason in ("stop", "length") else None


def _instructed(told: Messages, instruction: str | None) -> Messages:
    if instruction is None:
        return told
    *before, last = told
    if last["role"] != "user":
        return [*told, {"role": "user", "content": instruction}]
    return [*before, {**last, "content": f"{last['content']}\n\n{instruction}"}]
