"""One client: the device first, the cloud where it is worth it and allowed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, TypeAlias

from typing_extensions import Unpack

from edgesdk.closing import Closes
from edgesdk.decode.options import OptionChanges, Options, options_from
from edgesdk.errors import ContextOverflow, RequestError
from edgesdk.hybrid.asking import Asked, CloudAsker, NotAsked
from edgesdk.hybrid.cloud.answer import Piece, Restart
from edgesdk.hybrid.cloud.attempts import OnBreak
from edgesdk.hybrid.cloud.clock import Deadline
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.drafting import draft
from edgesdk.hybrid.privacy.policy import Policy, Upload, Verdict
from edgesdk.hybrid.privacy.vault import Vault
from edgesdk.hybrid.records.decision import Decision, Texts
from edgesdk.hybrid.records.journal import Journal
from edgesdk.hybrid.reply import HybridReply, LocalDraft
from edgesdk.hybrid.spending.budget import Budget
from edgesdk.hybrid.trust.confidence import Confidence
from edgesdk.hybrid.waiting.flushing import LateReply, ask_late, flush, keep
from edgesdk.hybrid.waiting.held import Held, held_of
from edgesdk.hybrid.waiting.queue import Queue
from edgesdk.model import Model
from edgesdk.text.prompts import Prompt, messages_of

Prefer = Literal["local", "cloud"]
HybridEvent: TypeAlias = Piece | Restart
Messages: TypeAlias = list[dict[str, Any]]

_LOG = logging.getLogger("edgesdk.hybrid")


class HybridStream(Closes, Iterator[HybridEvent]):
    """Pieces of an answer. After a `Restart` all pieces before it are void: another answers."""

    def __init__(self, steps: Generator[HybridEvent, None, HybridReply]) -> None:
        self._steps = steps
        self._reply: HybridReply | None = None

    def __next__(self) -> HybridEvent:
        try:
            return next(self._steps)
        except StopIteration as end:
            self._reply = self._reply or end.value
            raise StopIteration from None

    @property
    def reply(self) -> HybridReply:
        """The whole answer.

        Raises:
            RequestError: it was not read to its end.
        """
        if self._reply is None:
            raise RequestError("The answer was not read to its end.", hint="Iterate it first.")
        return self._reply

    def close(self) -> None:
        """End the answer here, on the device and in the cloud."""
        self._steps.close()


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
        confidence: how sure an answer has to be.
        on_break, hedge_after: see `edgesdk.hybrid.cloud.client.CloudClient`.
        queue: where requests wait that could not go to the cloud; None for nowhere. It stays the
            caller's to close, as the budget and the journal do.
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
        on_break: OnBreak = "restart",
        hedge_after: float | None = None,
        queue: Queue | None = None,
    ) -> None:
        self._model = model
        self._queue = queue
        self._policy = policy or Policy()
        self._journal = journal
        self._confidence = confidence or Confidence()
        clouds = [cloud] if isinstance(cloud, Cloud) else cloud
        self._asker = CloudAsker(clouds, self._policy, budget, on_break, hedge_after)

    def respond(
        self,
        prompt: Prompt,
        *,
        upload: Upload | None = None,
        tags: Iterable[str] = (),
        prefer: Prefer | None = None,
        **options: Unpack[OptionChanges],
    ) -> HybridReply:
        """Answer a prompt; see `stream`."""
        with self.stream(prompt, upload=upload, tags=tags, prefer=prefer, **options) as stream:
            for _ in stream:
                pass
            return stream.reply

    def stream(
        self,
        prompt: Prompt,
        *,
        upload: Upload | None = None,
        tags: Iterable[str] = (),
        prefer: Prefer | None = None,
        **options: Unpack[OptionChanges],
    ) -> HybridStream:
        """Answer a prompt piece by piece.

        Args:
            prompt: a text, or a list of messages.
            upload: the privacy rule of this call, in place of the default and the tags'.
            tags: of this call, for the policy's rules.
            prefer: "cloud" asks there first, "local" keeps whatever the device says.
            options: those of `edgesdk.Options`; the deadline is for both parts together.

        Raises:
            InvalidOption: an option is unknown or out of its range.
            ContextOverflow: the prompt does not fit the device's model, and the cloud may not be
                asked or gives no answer. From the iteration, as are the next two.
            DeadlineExceeded: the deadline passed before the first token of an answer.
            EngineError: the engine failed.
        """
        checked = options_from(options)
        messages = messages_of(prompt)
        verdict = self._policy.judge(messages, call=upload, tags=tags)
        return HybridStream(self._answer(messages, checked, verdict, prefer))

    def flush_queue(self) -> Iterator[LateReply]:
        """Ask the cloud what waits in the queue, under the policy and within the budget of now, and
        yield the answers as they come; see `edgesdk.hybrid.waiting.flushing.flush`. Several
        processes may do so at once.

        Raises:
            RequestError: the queue cannot be used.
        """
        return iter(()) if self._queue is None else flush(self._queue, self._send_late)

    def close(self) -> None:
        """End all questions to the cloud. The model stays open."""
        self._asker.close()

    def _answer(
        self, messages: Messages, options: Options, verdict: Verdict, prefer: Prefer | None
    ) -> Generator[HybridEvent, None, HybridReply]:
        started, deadline = time.time(), Deadline(options.deadline)
        may_leave = self._asker.possible and verdict.upload != "local_only" and prefer != "local"
        local: LocalDraft | None = None
        objection: str | None = "the app prefers the cloud"
        if not (may_leave and prefer == "cloud"):
            local, objection = yield from self._local(messages, options, may_leave, prefer)
        if local is not None and objection is None:
            reply = HybridReply(local.text, "local", "sure enough", local=local)
        else:
            assert objection is not None, "without a draft there is a reason why"
            reply = yield from self._elsewhere(
                messages, options, verdict, local, objection, deadline
            )
        self._write_down(reply, messages, verdict, started)
        return reply

    def _local(
        self, messages: Messages, options: Options, may_leave: bool, prefer: Prefer | None
    ) -> Generator[HybridEvent, None, tuple[LocalDraft | None, str | None]]:
        """A draft, and what speaks against keeping it."""
        try:
            local = yield from self._draft(messages, options, may_give_up=may_leave)
        except ContextOverflow:
            if not may_leave:
                raise
            return None, "the prompt does not fit the device's model"
        if prefer == "local":
            return local, None
        if local.confidence is None:
            return local, "the device said nothing"
        if local.given_up or local.confidence < self._confidence.threshold:
            return local, f"the device was unsure ({local.confidence:.2f})"
        return local, None

    def _draft(
        self, messages: Messages, options: Options, *, may_give_up: bool
    ) -> Generator[HybridEvent, None, LocalDraft]:
        steps = draft(
            self._model.runtime, messages, options, self._confidence, may_give_up=may_give_up
        )
        while True:
            try:
                piece = next(steps)
            except StopIteration as end:
                found: LocalDraft = end.value
                return found
            yield Piece(piece)

    def _elsewhere(
        self,
        messages: Messages,
        options: Options,
        verdict: Verdict,
        local: LocalDraft | None,
        objection: str,
        deadline: Deadline,
    ) -> Generator[HybridEvent, None, HybridReply]:
        """The cloud's answer; where there is none, the device's after all."""
        shown = local is not None and bool(local.text)
        vault = Vault(self._policy.detectors)
        tokens = local.receipt.prompt_tokens if local else self._model.count(messages)
        asking = self._asker.ask(
            messages, options, verdict, vault, prompt_tokens=tokens, deadline=deadline
        )
        began = False
        try:
            while True:
                event = next(asking)
                if shown and not began:
                    yield Restart(objection)
                began = True
                yield event
        except StopIteration as end:
            asked: Asked = end.value
            return HybridReply(
                asked.answer.text, "cloud", objection, False, local, asked.answer, asked.cost
            )
        except NotAsked as error:
            refusal, cost = str(error), error.cost
            queued = keep(self._queue, error, held_of(messages, options, verdict))
        finally:
            asking.close()
        if local is None or local.given_up:
            if shown or began:
                yield Restart(refusal)
            left = replace(options, deadline=deadline.seconds) if options.deadline else options
            local = yield from self._draft(messages, left, may_give_up=False)
        elif began:
            yield Restart(refusal)
            yield Piece(local.text)
        reason = f"{objection}; {refusal}" + ("" if queued is None else "; asked again later")
        return HybridReply(local.text, "local", reason, True, local, None, cost, queued)

    def _send_late(self, held: Held, deadline: Deadline) -> HybridReply:
        started, tokens = time.time(), self._model.count(held.messages)
        reply, verdict = ask_late(held, self._policy, self._asker, tokens, deadline)
        self._write_down(reply, held.messages, verdict, started)
        return reply

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
            signals=asdict(local.signals) if local and local.signals else {},
            bundle=self._model.runtime.engine.origin.model,
            endpoint=cloud.endpoint if cloud else "",
            prompt_tokens=counted.prompt_tokens if counted else _tokens(local, "prompt_tokens"),
            output_tokens=counted.completion_tokens if counted else _tokens(local, "output_tokens"),
            money=reply.cost.money,
            seconds=time.time() - started,
            finish=cloud.finish_reason if cloud else local.receipt.finish_reason if local else "",
        )
        prompt = json.dumps(messages, ensure_ascii=False)
        texts = Texts(prompt, local.text if local else None, cloud.text if cloud else None)
        try:
            self._journal.append(decision, prompt=prompt, texts=texts)
        except RequestError as error:
            _LOG.warning("a decision was not written down: %s", error)


def _tokens(local: LocalDraft | None, name: str) -> int:
    return 0 if local is None else int(getattr(local.receipt, name))
