"""The device's part of an answer: a draft, and more tries where it is unsure."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import replace

from edgesdk.decode.options import Options
from edgesdk.errors import ContextOverflow, DeadlineExceeded
from edgesdk.hybrid.ask import Ask, Messages
from edgesdk.hybrid.cloud.answer import Piece, Restart
from edgesdk.hybrid.cloud.clock import Deadline
from edgesdk.hybrid.drafting import draft
from edgesdk.hybrid.effort.effort import Effort, insist
from edgesdk.hybrid.gate.keeper import Gatekeeper
from edgesdk.hybrid.privacy.vault import Vault
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

    def habits(self, confidence: Confidence) -> str:
        """What of its settings decides which answers it makes, to be compared; empty where all is
        as without a gate and effort. Settings that depend on the device's state are not in it."""
        effort, hint, prompts = self._effort, self._keeper.hint, self._keeper.prompts
        found: dict[str, object] = {}
        if effort is not None:
            fields = {name: value for name, value in vars(effort).items() if name != "alike"}
            threshold = confidence.threshold
            found["effort"] = {**fields, "alike": _name(effort.alike), "threshold": threshold}
        if hint is not None:
            found["hint"] = _name(hint)
        if prompts is not None:
            found["prompts"] = [prompts.regression.to_json(), prompts.threshold]
        return json.dumps(found, sort_keys=True) if found else ""

    def answer(
        self, ask: Ask, confidence: Confidence, *, others: bool, threshold: float = 0.0
    ) -> Generator[Piece | Restart, None, LocalDraft]:
        """Yield the answer as it comes; return what it was.

        Args:
            confidence: by which the answer is made.
            others: whether anyone else could answer.
            threshold: that will decide about the answer; above 1 no effort could save one.

        Raises:
            RequestError: the messages need more than a model of text has.
            ContextOverflow, EmptyPrompt, TemplateError, EngineError, DeadlineExceeded: see
                `edgesdk.hybrid.drafting.draft`.
        """
        effort = self._effort if threshold <= 1 else None
        steps = self._steps(ask, confidence, effort, others=others)
        try:
            while True:
                step = next(steps)
                if step is not None:
                    yield step
        except StopIteration as end:
            found: LocalDraft = end.value
            return found
        finally:
            steps.close()

    def trial(
        self, messages: Messages, options: Options, confidence: Confidence, *, others: bool
    ) -> Generator[object, None, LocalDraft | None]:
        """What `answer` would make of a prompt, to judge it by; None where the prompt itself would
        not let the device try. Something is yielded after each piece, so that it can be left.

        Args:
            others: whether anyone else can answer; without, no gate is asked.

        Raises:
            EmptyPrompt, EngineError, DeadlineExceeded: see `answer`.
        """
        if others and self._keeper.objection(messages, options, steady=True) is not None:
            return None
        ask = Ask(messages, options, Vault(()))
        return (yield from self._steps(ask, confidence, self._effort, others=others))

    def _steps(
        self, ask: Ask, confidence: Confidence, effort: Effort | None, *, others: bool
    ) -> Generator[Piece | Restart | None, None, LocalDraft]:
        """As `answer`; None is yielded while there is nothing to show."""
        deadline = Deadline(ask.options.deadline)
        lent = LentSequence(ask.lender(self._runtime))
        odds = self._keeper.prompt_log_odds(ask.messages)
        told = self._keeper.told(ask.messages if ask.seen is None else ask.seen)
        ask = replace(ask, messages=told, sequences=lent)
        try:
            first = yield from self._shown(ask, confidence, odds, others=others)
            self._keeper.learn(first.receipt)
            if effort is None or not effort.worth(first, confidence, others=others):
                return first

            def again(
                options: Options, instruction: str | None
            ) -> Generator[None, None, LocalDraft | None]:
                messages = _instructed(ask.messages, instruction)
                mine = replace(ask, messages=messages, options=options)
                return self._unseen(mine, confidence, odds)

            best = yield from insist(first, again, ask.options, confidence, effort, deadline)
        finally:
            lent.end()
        if best.text != first.text:
            yield Restart("the device's answers agree on another")
            yield Piece(best.text, "local")
        return best

    def _shown(
        self, ask: Ask, confidence: Confidence, odds: float, *, others: bool
    ) -> Generator[Piece, None, LocalDraft]:
        steps = draft(self._runtime, ask, confidence, may_give_up=others, prompt_log_odds=odds)
        try:
            while True:
                yield Piece(next(steps), "local")
        except StopIteration as end:
            found: LocalDraft = end.value
            return found
        finally:
            steps.close()

    def _unseen(
        self, ask: Ask, confidence: Confidence, odds: float
    ) -> Generator[None, None, LocalDraft | None]:
        """One more answer; None where it did not come to its end. The prompt is in the KV cache."""
        steps = self._shown(ask, confidence, odds, others=False)
        try:
            while True:
                next(steps)
                yield None
        except StopIteration as end:
            found: LocalDraft = end.value
        except (DeadlineExceeded, ContextOverflow):
            return None
        finally:
            steps.close()
        return found if found.receipt.finish_reason in ("stop", "length") else None


def _name(function: Callable[..., object]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _instructed(told: Messages, instruction: str | None) -> Messages:
    if instruction is None:
        return told
    *before, last = told
    if last["role"] != "user":
        return [*told, {"role": "user", "content": instruction}]
    return [*before, {**last, "content": f"{last['content']}\n\n{instruction}"}]
