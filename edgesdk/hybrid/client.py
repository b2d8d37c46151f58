"""One client: the device first, the cloud where it is worth it and allowed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import Unpack

from edgesdk.closing import Closes
from edgesdk.decode.options import OptionChanges, options_from
from edgesdk.hybrid.answering import Asked, NotAsked
from edgesdk.hybrid.ask import Ask, Messages, ask_of
from edgesdk.hybrid.asking import CloudAsker
from edgesdk.hybrid.auditing import Audits
from edgesdk.hybrid.changes import HybridChanges, Prefer, parted
from edgesdk.hybrid.cloud.answer import Piece, Restart
from edgesdk.hybrid.cloud.attempts import OnBreak
from edgesdk.hybrid.cloud.clock import Deadline
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.device import Device
from edgesdk.hybrid.effort.effort import Effort
from edgesdk.hybrid.fitting import HybridOverflow
from edgesdk.hybrid.gate.gate import DraftGate
from edgesdk.hybrid.gate.keeper import Gatekeeper
from edgesdk.hybrid.gate.objection import Objection
from edgesdk.hybrid.privacy.policy import Policy, Upload, Verdict
from edgesdk.hybrid.privacy.vault import Vault
from edgesdk.hybrid.promise import Promise
from edgesdk.hybrid.records.journal import Journal
from edgesdk.hybrid.reply import HybridReply, LocalDraft, local_reply
from edgesdk.hybrid.spending.budget import Budget
from edgesdk.hybrid.stream import (
    AsyncHybridStream,
    HybridEvent,
    HybridStream,
    Steps,
)
from edgesdk.hybrid.trust.calibrating import Progress
from edgesdk.hybrid.trust.calibrations import Calibrated
from edgesdk.hybrid.trust.confidence import KEPT_AS, Confidence, confidence_from
from edgesdk.hybrid.trust.judging import Check
from edgesdk.hybrid.trust.kept import Kept, kept_for
from edgesdk.hybrid.trusting import Trust
from edgesdk.hybrid.waiting.flushing import LateReply
from edgesdk.hybrid.waiting.later import Later
from edgesdk.hybrid.waiting.queue import Queue
from edgesdk.hybrid.writing import write_down
from edgesdk.model import Model
from edgesdk.relaying import read_all, read_all_async
from edgesdk.text.prompts import Prompt, messages_of

if TYPE_CHECKING:
    from edgesdk.hybrid.chat import HybridChat

_PREFERRED = Objection("hint", "the app prefers the cloud")


class HybridClient(Closes):
    """Answers on the device, and asks a cloud model where that answer is not to be trusted.

    Before anything is sent the policy is asked, then the budget. Where either is against it, or
    the cloud cannot be reached, the device's answer comes back, marked as of low confidence. The
    client opens no socket and starts no thread before its first question to the cloud.

    Args:
        model: the device's. It stays the caller's to close.
        cloud: endpoints in order of preference; none makes a client that only ever answers here.
        policy: what may leave the device.
        budget: what the cloud may cost; None for no limit.
        journal: where decisions are written down; None for nowhere.
        confidence: how sure an answer has to be, where no calibration says; None for the one that
            is kept for this model, else for a plain one.
        gate: when the device does not even try.
        effort: what more it does where it is unsure; None for nothing.
        kept: what was learned of the model; None for what the store has, or came with the bundle.
        calibrations, audits: see `edgesdk.hybrid.trusting.Trust`.
        on_break, hedge_after: see `edgesdk.hybrid.cloud.client.CloudClient`.
        queue: where requests wait that could not go to the cloud; None for nowhere.
    """

    def __init__(
        self,
        model: Model,
        *,
        cloud: Cloud | Sequence[Cloud] = (),
        policy: Policy | None = None,
        budget: Budget | None = None,
        journal: Journal | None = None,
        confidence: Confidence | None = None,
        gate: DraftGate | None = None,
        effort: Effort | None = None,
        kept: Kept | None = None,
        on_break: OnBreak = "restart",
        hedge_after: float | None = None,
        calibrations: str | Path | None = None,
        audits: Audits | None = None,
        queue: Queue | None = None,
    ) -> None:
        self._model = model
        self._policy = policy or Policy()
        self._journal = journal
        kept = kept or kept_for(model.source)
        known = kept.known(model.runtime.engine.origin.model, KEPT_AS, confidence_from)
        self._keeper = Gatekeeper(model.runtime, gate or DraftGate(), kept)
        self._device = Device(model.runtime, self._keeper, effort)
        clouds = [cloud] if isinstance(cloud, Cloud) else cloud
        self._trust = Trust(
            model, self._device, confidence or known or Confidence(), clouds, self._policy, budget,
            journal, calibrations=calibrations, audits=audits,
        )  # fmt: skip
        self._asker = CloudAsker(clouds, self._policy, budget, on_break, hedge_after)
        self._later = Later(queue, self._policy, self._asker, self._keeper.count, self._write_down)

    def respond(self, prompt: Prompt, **options: Unpack[HybridChanges]) -> HybridReply:
        """Answer a prompt; see `stream`."""
        return read_all(self.stream(prompt, **options))

    def stream(self, prompt: Prompt, **options: Unpack[HybridChanges]) -> HybridStream:
        """Answer a prompt piece by piece.

        Args:
            prompt: a text, or a list of messages.
            options: who may answer, and those of `edgesdk.Options` (see `HybridChanges`); the
                deadline is for both parts together. `schema` and `tools` hold for whoever answers:
                what a cloud says is checked, and is no answer where it does not fit. To `regex`,
                `choices` and `grammar` only the device can be held.

        Raises:
            InvalidOption: an option is unknown or out of its range.
            ContextOverflow: the prompt does not fit the device's model, and the cloud may not be
                asked or gives no answer. From the iteration, as are all that follow.
            StructureError: neither the device nor the cloud gave an answer of the form.
            DeadlineExceeded: the deadline passed before the first token of an answer.
            EngineError: the engine failed.
        """
        rules, changes = parted(options)
        vault = Vault(self._policy.detectors)
        ask = ask_of(self._model.runtime, messages_of(prompt), changes, vault=vault)
        verdict = self.judge(ask, upload=rules.upload, tags=rules.tags)
        return self.answer(ask, verdict, rules.prefer)

    async def arespond(self, prompt: Prompt, **options: Unpack[HybridChanges]) -> HybridReply:
        """`respond` for asyncio; cancelling the task ends the answer."""
        return await read_all_async(self.astream(prompt, **options))

    def astream(self, prompt: Prompt, **options: Unpack[HybridChanges]) -> AsyncHybridStream:
        """`stream` for asyncio; cancelling the task ends the answer."""
        return AsyncHybridStream(self.stream(prompt, **options))

    def chat(self, system: str | None = None, *, overflow: HybridOverflow = "error") -> HybridChat:
        """A conversation, with a KV cache and placeholders of its own.

        Args:
            overflow: what the device does with a conversation that is too long for it and that the
                cloud may not be asked about, or does not answer. "error" raises ContextOverflow;
                with "drop_oldest_turns" it sees the latest turns that fit, and the receipt says so.
        """
        from edgesdk.hybrid.chat import HybridChat

        return HybridChat(
            self, self._model.runtime, self._policy.detectors, system=system, overflow=overflow
        )

    def restore(self, path: str | Path, *, overflow: HybridOverflow = "error") -> HybridChat:
        """The conversation that `HybridChat.save` or `edgesdk.chat.Chat.save` wrote; what the file
        has in its KV cache is not computed again, and its turns keep their rules.

        Raises:
            RequestError: the file is damaged, holds no chat, or was saved with another model,
                engine or KV layout.
            ContextOverflow: it holds more tokens than this model was loaded for.
        """
        from edgesdk.hybrid.chat import restored

        return restored(self, self._model.runtime, self._policy.detectors, Path(path), overflow)

    def judge(self, ask: Ask, *, upload: Upload | None = None, tags: Iterable[str] = ()) -> Verdict:
        """What may happen to a request; see `Policy.judge`."""
        return self._policy.judge(ask.messages, call=upload, tags=tags, besides=ask.besides)

    def may_ask(self, verdict: Verdict, prefer: Prefer | None = None) -> bool:
        """Whether the cloud might answer a request."""
        return self._asker.possible and verdict.upload != "local_only" and prefer != "local"

    def answer(
        self,
        ask: Ask,
        verdict: Verdict,
        prefer: Prefer | None = None,
        on_end: Callable[[HybridReply | None], None] = lambda reply: None,
    ) -> HybridStream:
        """Answer a request, for those who bring their own sequences, as chats and servers do.

        Args:
            on_end: called once, with the reply, or with None where there is none.
        """
        return HybridStream(self._answer(ask, verdict, prefer), ask.cancel, on_end)

    def calibrate(
        self,
        labelled: Iterable[tuple[Prompt, Check]] | Journal,
        *,
        alpha: float = 0.2,
        delta: float = 0.05,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
        **options: Unpack[OptionChanges],
    ) -> Calibrated:
        """Keep only answers of which at most the share `alpha` is wrong, but for the probability
        `delta`; see `edgesdk.hybrid.trusting.Trust.calibrate`."""
        return self._trust.calibrate(
            labelled, options_from(options), alpha=alpha, delta=delta, progress=progress,
            cancel=cancel,
        )  # fmt: skip

    @property
    def promise(self) -> Promise:
        """How far the device's answers can be trusted now."""
        return self._trust.promise

    def flush_queue(self) -> Iterator[LateReply]:
        """Ask the cloud what waits in the queue, under the policy and within the budget of now, and
        yield the answers as they come; see `edgesdk.hybrid.waiting.flushing.flush`. Several
        processes may do so at once.

        Raises:
            RequestError: the queue cannot be used.
        """
        return self._later.flush()

    def close(self) -> None:
        """End all questions to the cloud. The model stays open."""
        self._trust.close()
        self._asker.close()

    def _answer(self, ask: Ask, verdict: Verdict, prefer: Prefer | None) -> Steps:
        started, deadline = time.time(), Deadline(ask.options.deadline)
        may_leave = self.may_ask(verdict, prefer)
        local: LocalDraft | None = None
        objection: Objection | None = _PREFERRED
        if not (may_leave and prefer == "cloud"):
            local, objection = yield from self._local(ask, may_leave, prefer)
        cancelled = ask.cancel.is_set()
        if local is not None and (objection is None or cancelled):
            reason = "cancelled" if cancelled else f"sure enough{_tries(local)}"
            reply = local_reply(local, reason, low_confidence=cancelled)
        else:
            assert objection is not None, "without a draft there is a reason why"
            reply = yield from self._elsewhere(ask, verdict, local, objection, deadline)
        self._write_down(reply, ask.messages, verdict, started)
        # Nothing is promised of forms and calls, and nobody compares them.
        chosen = prefer is None and not ask.cancel.is_set() and ask.is_plain
        self._trust.answered(ask.messages, ask.options, verdict, reply, chosen=chosen)
        return reply

    def _local(
        self, ask: Ask, may_leave: bool, prefer: Prefer | None
    ) -> Generator[HybridEvent, None, tuple[LocalDraft | None, Objection | None]]:
        """A draft, and what speaks against keeping it."""
        if may_leave:
            objection = self._keeper.objection(
                ask.messages, ask.options, tools=ask.tools is not None
            )
            if objection is not None:
                return None, objection
        threshold = self._trust.confidence.threshold
        local = yield from self._device.answer(
            ask, self._trust.base, others=may_leave, threshold=threshold
        )
        if prefer == "local":
            return local, None
        if local.confidence is None:
            return local, Objection("", "the device said nothing")
        if local.trouble is not None:
            return local, Objection("", local.trouble)
        if local.doubted or local.confidence < threshold:
            unsure = f"the device was unsure ({local.confidence:.2f}{_tries(local)})"
            return local, Objection("", unsure)
        return local, None

    def _elsewhere(
        self,
        ask: Ask,
        verdict: Verdict,
        local: LocalDraft | None,
        objection: Objection,
        deadline: Deadline,
    ) -> Steps:
        """The cloud's answer; where there is none, the device's after all."""
        gate, reason = objection
        shown = local is not None and bool(local.text)
        tokens = local.receipt.prompt_tokens if local else self._keeper.count(ask.messages)
        asking = self._asker.ask(ask, verdict, prompt_tokens=tokens, deadline=deadline)
        said: list[str] = []
        began = False
        try:
            while True:
                event = next(asking)
                if shown and not began:
                    yield Restart(reason)
                began = True
                if isinstance(event, Restart):
                    said.clear()
                elif isinstance(event, Piece):
                    said.append(event.text)
                yield event
        except StopIteration as end:
            asked: Asked = end.value
            return asked.reply(reason, local, gate)
        except NotAsked as error:
            refusal, cost = str(error), error.cost
            queued = self._later.keep(error, ask, verdict)
        finally:
            asking.close()
        if ask.cancel.is_set() and began:
            reason = f"{reason}; cancelled"
            return HybridReply("".join(said), "cloud", reason, True, local, cost=cost)
        if local is None or local.given_up:
            if shown or began:
                yield Restart(refusal)
            left = ask.options
            if left.deadline is not None:
                left = replace(left, deadline=max(deadline.remaining, 1e-3))
            again = replace(ask, options=left)
            local = yield from self._device.answer(again, self._trust.base, others=False)
        elif began:
            yield Restart(refusal)
            yield Piece(local.text, "local")
        reason = f"{reason}; {refusal}" + ("" if queued is None else "; asked again later")
        return local_reply(local, reason, low_confidence=True, cost=cost, gate=gate, queued=queued)

    def _write_down(
        self, reply: HybridReply, messages: Messages, verdict: Verdict, started: float
    ) -> None:
        if self._journal is not None:
            bundle = self._model.runtime.engine.origin.model
            write_down(self._journal, reply, messages, verdict, started=started, bundle=bundle)


def _tries(local: LocalDraft) -> str:
    return f" after {local.answers} answers" if local.answers > 1 else ""
