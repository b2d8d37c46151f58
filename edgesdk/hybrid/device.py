"""The device's part of an answer: a draft, and more tries where it is unsure."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from edgesdk.decode.options import Options
from edgesdk.errors import ContextOverflow, DeadlineExceeded
from edgesdk.hybrid.ask import Ask, Messages
from edgesdk.hybrid.cloud.answer import Piece, Restart
from edgesdk.hybrid.cloud.clock import Deadline
from edgesdk.hybrid.drafting import draft
from edgesdk.hybrid.effort.effort import Effort, insist
from edgesdk.hybrid.gate.keeper import Gatekeeper
from edgesdk.hybrid.reply import LocalDraft
from edgesdk.hybrid.sequences import LentSequence
from edgesdk.hybrid.trust.confidence import Confidence
from edgesdk.runtime import Runtime


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
        self, ask: Ask, confidence: Confidence, *, others: bool
    ) -> Generator[Piece | Restart, None, LocalDraft]:
        """Yield the answer as it comes; return what it was.

        Args:
            others: whether anyone else could answer.

        Raises:
            RequestError: the messages need more than a model of text has.
            ContextOverflow, EmptyPrompt, TemplateError, EngineError, DeadlineExceeded: see
                `edgesdk.hybrid.drafting.draft`.
        """
        deadline = Deadline(ask.options.deadline)
        lent = LentSequence(ask.sequences)
        ask = replace(ask, messages=self._keeper.told(ask.messages), sequences=lent)
        try:
            first = yield from self._shown(ask, confidence, others=others)
            self._keeper.learn(first.receipt)
            effort = self._effort
            if effort is None or not effort.worth(first, confidence, others=others):
                return first

            def again(options: Options, instruction: str | None) -> LocalDraft | None:
                messages = _instructed(ask.messages, instruction)
                return self._unseen(replace(ask, messages=messages, options=options), confidence)

            best = insist(first, again, ask.options, confidence, effort, deadline)
        finally:
            lent.end()
        if best.text != first.text:
            yield Restart("the device's answers agree on another")
            yield Piece(best.text, "local")
        return best

    def _shown(
        self, ask: Ask, confidence: Confidence, *, others: bool
    ) -> Generator[Piece, None, LocalDraft]:
        steps = draft(self._runtime, ask, confidence, may_give_up=others)
        try:
            while True:
                yield Piece(next(steps), "local")
        except StopIteration as end:
            found: LocalDraft = end.value
            return found
        finally:
            steps.close()

    def _unseen(self, ask: Ask, confidence: Confidence) -> LocalDraft | None:
        """One more answer; None where it did not come to its end. The prompt is in the KV cache."""
        steps = self._shown(ask, confidence, others=False)
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
