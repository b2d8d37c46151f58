"""One client: the device first, the cloud where it is worth it and allowed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from typing_extensions import Unpack

from edgesdk.closing import Closes
from edgesdk.errors import RequestError
from edgesdk.hybrid.answering import Asked, NotAsked
from edgesdk.hybrid.ask import Ask, Messages, ask_of
from edgesdk.hybrid.asking import CloudAsker
from edgesdk.hybrid.cloud.answer import Piece, Restart
from edgesdk.hybrid.cloud.attempts import OnBreak
from edgesdk.hybrid.cloud.clock import Deadline
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.device import Device
from edgesdk.hybrid.effort.effort import Effort
from edgesdk.hybrid.gate.gate import DraftGate
from edgesdk.hybrid.gate.keeper import Gatekeeper
from edgesdk.hybrid.gate.objection import Objection
from edgesdk.hybrid.privacy.policy import Policy, Upload, Verdict
from edgesdk.hybrid.privacy.vault import Vault
from edgesdk.hybrid.records.decision import Decision, Texts
from edgesdk.hybrid.records.journal import Journal
from edgesdk.hybrid.reply import HybridReply, LocalDraft, local_reply
from edgesdk.hybrid.sequences import FreshSequences
from edgesdk.hybrid.spending.budget import Budget
from edgesdk.hybrid.stream import (
    AsyncHybridStream,
    HybridEvent,
    HybridStream,
    Steps,
    read_all,
    read_all_async,
)
from edgesdk.hybrid.trust.confidence import KEPT_AS, Confidence, confidence_from
from edgesdk.hybrid.trust.kept import Kept, kept_for
from edgesdk.model import Model
from edgesdk.text.prompts import Prompt, messages_of
from edgesdk.tools.offer import ToolChanges

if TYPE_CHECKING:
    from edgesdk.hybrid.chat import HybridChat

Prefer = Literal["local", "cloud"]

_PREFERRED = Objection("hint", "the app prefers the cloud")
_LOG = logging.getLogger("edgesdk.hybrid")


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
        confidence: how sure an answer has to be; None for the one that is kept for this model, else
            for a plain one.
        gate: when the device does not even try.
        effort: what more it does where it is unsure; None for nothing.
        kept: what was learned of the model; None for what the store has, or came with the bundle.
        on_break: see `edgesdk.hybrid.cloud.client.CloudClient`.
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
    ) -> None:
        self._model = model
        self._policy = policy or Policy()
        self._journal = journal
        kept = kept or kept_for(model.source)
        bundle = model.runtime.engine.origin.model
        known = kept.known(bundle, KEPT_AS, confidence_from)
        self._confidence = confidence or known or Confidence()
        self._keeper = Gatekeeper(model.runtime, gate or DraftGate(), kept)
        self._device = Device(model.runtime, self._keeper, effort)
        clouds = [cloud] if isinstance(cloud, Cloud) else cloud
        self._asker = CloudAsker(clouds, self._policy, budget, on_break)

    def respond(
        self,
        prompt: Prompt,
        *,
        upload: Upload | None = None,
        tags: Iterable[str] = (),
        prefer: Prefer | None = None,
        **options: Unpack[ToolChanges],
    ) -> HybridReply:
        """Answer a prompt; see `stream`."""
        return read_all(self.stream(prompt, upload=upload, tags=tags, prefer=prefer, **options))

    def stream(
        self,
        prompt: Prompt,
        *,
        upload: Upload | None = None,
        tags: Iterable[str] = (),
        prefer: Prefer | None = None,
        **options: Unpack[ToolChanges],
    ) -> HybridStream:
        """Answer a prompt piece by piece.

        Args:
            prompt: a text, or a list of messages.
            upload: the privacy rule of this call, in place of the default and the tags'.
            tags: of this call, for the policy's rules.
            prefer: "cloud" asks there first, "local" keeps whatever the device says.
            options: those of `edgesdk.Options`; the deadline is for both parts together. `schema`
                and `tools` hold for whoever answers (see `edgesdk.tools.offer.ToolChanges`); what
                a cloud answers is checked, and is no answer where it does not fit. To `regex`,
                `choices` and `grammar` only the device can be held.

        Raises:
            InvalidOption: an option is unknown or out of its range.
            ContextOverflow: the prompt does not fit the device's model, and the cloud may not be
                asked or gives no answer. From the iteration, as are all that follow.
            StructureError: neither the device nor the cloud gave an answer of the form.
            DeadlineExceeded: the deadline passed before the first token of an answer.
            EngineError: the engine failed.
        """
        runtime, vault = self._model.runtime, Vault(self._policy.detectors)
        ask = ask_of(
            runtime,
            messages_of(prompt),
            options,
            vault=vault,
            sequences=FreshSequences(runtime.engine),
        )
        return self.answer(ask, self.judge(ask, upload=upload, tags=tags), prefer)

    async def arespond(
        self,
        prompt: Prompt,
        *,
        upload: Upload | None = None,
        tags: Iterable[str] = (),
        prefer: Prefer | None = None,
        **options: Unpack[ToolChanges],
    ) -> HybridReply:
        """`respond` for asyncio; cancelling the task ends the answer."""
        stream = self.astream(prompt, upload=upload, tags=tags, prefer=prefer, **options)
        return await read_all_async(stream)

    def astream(
        self,
        prompt: Prompt,
        *,
        upload: Upload | None = None,
        tags: Iterable[str] = (),
        prefer: Prefer | None = None,
        **options: Unpack[ToolChanges],
    ) -> AsyncHybridStream:
        """`stream` for asyncio; cancelling the task ends the answer."""
        return AsyncHybridStream(
            self.stream(prompt, upload=upload, tags=tags, prefer=prefer, **options)
        )

    def chat(self, system: str | None = None) -> HybridChat:
        """A conversation, with a KV cache and placeholders of its own."""
        from edgesdk.hybrid.chat import HybridChat

        return HybridChat(self, self._model.runtime, self._policy.detectors, system=system)

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

    def close(self) -> None:
        """End all questions to the cloud. The model stays open."""
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
        local = yield from self._device.answer(ask, self._confidence, others=may_leave)
        if prefer == "local":
            return local, None
        if local.confidence is None:
            return local, Objection("", "the device said nothing")
        if local.trouble is not None:
            return local, Objection("", local.trouble)
        if local.given_up or local.confidence < self._confidence.threshold:
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
        finally:
            asking.close()
        if ask.cancel.is_set() and began:
            return HybridReply("".join(said), "cloud", f"{reason}; cancelled", True, local)
        if local is None or local.given_up:
            if shown or began:
                yield Restart(refusal)
            left = ask.options
            if left.deadline is not None:
                left = replace(left, deadline=max(deadline.remaining, 1e-3))
            again = replace(ask, options=left)
            local = yield from self._device.answer(again, self._confidence, others=False)
        elif began:
            yield Restart(refusal)
            yield Piece(local.text, "local")
        reason = f"{reason}; {refusal}"
        return local_reply(local, reason, low_confidence=True, cost=cost, gate=gate)

    def _write_down(
        self, reply: HybridReply, messages: Messages, verdict: Verdict, started: float
    ) -> None:
        """Into the journal, if that is possible; the answer does not depend on it."""
        if self._journal is None:
            return
        local, cloud = reply.local, reply.cloud
        counted = cloud.usage if cloud else None
        decision = Decision(
            at=started,
            route=reply.route,
            reason=reply.reason,
            upload=verdict.upload,
            kinds=tuple(sorted(verdict.kinds)),
            confidence=local.confidence if local else None,
            signals=local.measured if local else {},
            gate=reply.gate,
            bundle=self._model.runtime.engine.origin.model,
            endpoint=cloud.endpoint if cloud else "",
            prompt_tokens=counted.prompt_tokens if counted else _tokens(local, "prompt_tokens"),
            output_tokens=counted.completion_tokens if counted else _tokens(local, "output_tokens"),
            money=reply.cost.money,
            seconds=time.time() - started,
        )
        prompt = json.dumps(messages, ensure_ascii=False)
        texts = Texts(prompt, local.text if local else None, cloud.text if cloud else None)
        try:
            self._journal.append(decision, prompt=prompt, texts=texts)
        except RequestError as error:
            _LOG.warning("a decision was not written down: %s", error)


def _tries(local: LocalDraft) -> str:
    return f" after {local.answers} answers" if local.answers > 1 else ""


def _tokens(local: LocalDraft | None, name: str) -> int:
    return 0 if local is None else int(getattr(local.receipt, name))
