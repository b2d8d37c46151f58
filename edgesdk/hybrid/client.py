"""One client: the device first, the cloud where it is worth it and allowed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import Unpack

from edgesdk.generation.streaming import read_all, read_all_async
from edgesdk.hybrid.cloud.cloud_reply import Restart, TextDelta
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.failover import OnBreak
from edgesdk.hybrid.cloud.spending import Budget
from edgesdk.hybrid.confidence.artifacts import ArtifactStore, artifact_store_for
from edgesdk.hybrid.confidence.confidence import CONFIDENCE_ARTIFACT, Confidence, confidence_from
from edgesdk.hybrid.confidence.threshold import Check, Progress
from edgesdk.hybrid.journaling import record_decision
from edgesdk.hybrid.local import LocalModel
from edgesdk.hybrid.offline.queue import OfflineQueue
from edgesdk.hybrid.offline.sending import DeferredReply, DeferredRequests
from edgesdk.hybrid.overflow import HybridOverflow
from edgesdk.hybrid.privacy.policy import Policy, Upload, UploadVerdict
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.remote import CloudResult, NoCloudAnswer, RemoteModel
from edgesdk.hybrid.reply import (
    AnswerSteps,
    AsyncHybridStream,
    HybridEvent,
    HybridReply,
    HybridStream,
    LocalDraft,
    local_reply,
)
from edgesdk.hybrid.request import (
    HybridKwargs,
    HybridRequest,
    Messages,
    Prefer,
    hybrid_request_of,
    split_rules,
)
from edgesdk.hybrid.router import Preflight, Rejection, Router
from edgesdk.hybrid.self_consistency import SelfConsistency
from edgesdk.hybrid.storage.journal import Journal
from edgesdk.model import Model
from edgesdk.options import OptionsKwargs, options_from
from edgesdk.system.cancellation import Deadline
from edgesdk.system.closing import Closeable
from edgesdk.text.prompts import Prompt, as_messages

if TYPE_CHECKING:
    from edgesdk.hybrid.chat import HybridChat
    from edgesdk.hybrid.monitor.audits import Audits
    from edgesdk.hybrid.monitor.calibrations import CalibrationRecord
    from edgesdk.hybrid.monitor.guarantee import RiskGuarantee
    from edgesdk.hybrid.monitor.monitor import Monitor

_PREFERRED = Rejection("hint", "the app prefers the cloud")


class HybridClient(Closeable):
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
        router: when the device does not even try.
        self_consistency: what more it does where it is unsure; None for nothing.
        artifacts: what was learned of the model; None for what the store has or its bundle brought.
        calibrations, audits: see `edgesdk.hybrid.monitor.monitor.Monitor`.
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
        router: Router | None = None,
        self_consistency: SelfConsistency | None = None,
        artifacts: ArtifactStore | None = None,
        on_break: OnBreak = "restart",
        hedge_after: float | None = None,
        calibrations: str | Path | None = None,
        audits: Audits | None = None,
        queue: OfflineQueue | None = None,
    ) -> None:
        self._model = model
        self._policy = policy or Policy()
        self._journal = journal
        artifacts = artifacts or artifact_store_for(model.source)
        known = artifacts.load(
            model.runtime.engine.kv_identity.model, CONFIDENCE_ARTIFACT, confidence_from
        )
        self._preflight = Preflight(model.runtime, router or Router(), artifacts)
        self._device = LocalModel(model.runtime, self._preflight, self_consistency)
        self._confidence = confidence or known or Confidence()
        self._clouds = (cloud,) if isinstance(cloud, Cloud) else tuple(cloud)
        self._budget = budget
        self._monitor: Monitor | None = None
        self._guard = threading.Lock()
        if calibrations is not None or audits is not None:
            self._monitor = self._new_monitor(calibrations, audits)
        self._remote = RemoteModel(self._clouds, self._policy, budget, on_break, hedge_after)
        self._later = DeferredRequests(
            queue, self._policy, self._remote, self._preflight.count, self._write_down
        )

    def respond(self, prompt: Prompt, **options: Unpack[HybridKwargs]) -> HybridReply:
        """Answer a prompt; see `stream`."""
        return read_all(self.stream(prompt, **options))

    def stream(self, prompt: Prompt, **options: Unpack[HybridKwargs]) -> HybridStream:
        """Answer a prompt piece by piece.

        Args:
            prompt: a text, or a list of messages.
            options: who may answer, and those of `edgesdk.Options` (see `HybridKwargs`); the
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
        rules, changes = split_rules(options)
        redactor = Redactor(self._policy.detectors)
        ask = hybrid_request_of(
            self._model.runtime, as_messages(prompt), changes, redactor=redactor
        )
        verdict = self.evaluate(ask, upload=rules.upload, tags=rules.tags)
        return self.answer(ask, verdict, rules.prefer)

    async def arespond(self, prompt: Prompt, **options: Unpack[HybridKwargs]) -> HybridReply:
        """`respond` for asyncio; cancelling the task ends the answer."""
        return await read_all_async(self.astream(prompt, **options))

    def astream(self, prompt: Prompt, **options: Unpack[HybridKwargs]) -> AsyncHybridStream:
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
        from edgesdk.hybrid.chat import restore_hybrid_chat

        return restore_hybrid_chat(
            self, self._model.runtime, self._policy.detectors, Path(path), overflow
        )

    def evaluate(
        self, ask: HybridRequest, *, upload: Upload | None = None, tags: Iterable[str] = ()
    ) -> UploadVerdict:
        """What may happen to a request; see `Policy.evaluate`."""
        return self._policy.evaluate(ask.messages, call=upload, tags=tags, besides=ask.besides)

    def may_ask(self, verdict: UploadVerdict, prefer: Prefer | None = None) -> bool:
        """Whether the cloud might answer a request."""
        return self._remote.available and verdict.upload != "local_only" and prefer != "local"

    def answer(
        self,
        ask: HybridRequest,
        verdict: UploadVerdict,
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
        **options: Unpack[OptionsKwargs],
    ) -> CalibrationRecord:
        """Keep only answers of which at most the share `alpha` is wrong, but for the probability
        `delta`; see `edgesdk.hybrid.monitor.monitor.Monitor.calibrate`."""
        return self._opened_monitor().calibrate(
            labelled, options_from(options), alpha=alpha, delta=delta, progress=progress,
            cancel=cancel,
        )  # fmt: skip

    @property
    def guarantee(self) -> RiskGuarantee:
        """How far the device's answers can be trusted now."""
        return self._opened_monitor().guarantee

    def flush_queue(self) -> Iterator[DeferredReply]:
        """Ask the cloud what waits in the queue, under the policy and within the budget of now, and
        yield the answers as they come; see `edgesdk.hybrid.offline.sending.flush`. Several
        processes may do so at once.

        Raises:
            RequestError: the queue cannot be used.
        """
        return self._later.flush()

    def close(self) -> None:
        """End all questions to the cloud. The model stays open."""
        if self._monitor is not None:
            self._monitor.close()
        self._remote.close()

    def _opened_monitor(self) -> Monitor:
        """The monitor; a client that needs none loads none."""
        with self._guard:
            if self._monitor is None:
                self._monitor = self._new_monitor(None, None)
            return self._monitor

    def _new_monitor(self, calibrations: str | Path | None, audits: Audits | None) -> Monitor:
        from edgesdk.hybrid.monitor.monitor import Monitor

        return Monitor(
            self._model, self._device, self._confidence, self._clouds, self._policy, self._budget,
            self._journal, calibrations=calibrations, audits=audits,
        )  # fmt: skip

    def _answer(
        self, ask: HybridRequest, verdict: UploadVerdict, prefer: Prefer | None
    ) -> AnswerSteps:
        started, deadline = time.time(), Deadline(ask.options.deadline)
        may_leave = self.may_ask(verdict, prefer)
        local: LocalDraft | None = None
        rejection: Rejection | None = _PREFERRED
        if not (may_leave and prefer == "cloud"):
            local, rejection = yield from self._local(ask, may_leave, prefer)
        cancelled = ask.cancel.is_set()
        if local is not None and (rejection is None or cancelled):
            reason = "cancelled" if cancelled else f"sure enough{_samples_phrase(local)}"
            reply = local_reply(local, reason, low_confidence=cancelled)
        else:
            assert rejection is not None, "without a draft there is a reason why"
            reply = yield from self._elsewhere(ask, verdict, local, rejection, deadline)
        self._write_down(reply, ask.messages, verdict, started)
        # Nothing is promised of forms and calls, and nobody compares them.
        chosen = prefer is None and not ask.cancel.is_set() and ask.is_plain
        if self._monitor is not None:
            self._monitor.observe_answer(ask.messages, ask.options, verdict, reply, chosen=chosen)
        return reply

    def _local(
        self, ask: HybridRequest, may_leave: bool, prefer: Prefer | None
    ) -> Generator[HybridEvent, None, tuple[LocalDraft | None, Rejection | None]]:
        """A draft, and what speaks against keeping it."""
        if may_leave:
            rejection = self._preflight.check(
                ask.messages, ask.options, tools=ask.tools is not None
            )
            if rejection is not None:
                return None, rejection
        monitor = self._monitor
        threshold = (self._confidence if monitor is None else monitor.confidence).threshold
        local = yield from self._device.answer(
            ask, self._confidence, cloud_allowed=may_leave, threshold=threshold
        )
        if prefer == "local":
            return local, None
        if local.confidence is None:
            return local, Rejection("", "the device said nothing")
        if local.problem is not None:
            return local, Rejection("", local.problem)
        if local.predicted_wrong or local.confidence < threshold:
            unsure = f"the device was unsure ({local.confidence:.2f}{_samples_phrase(local)})"
            return local, Rejection("", unsure)
        return local, None

    def _elsewhere(
        self,
        ask: HybridRequest,
        verdict: UploadVerdict,
        local: LocalDraft | None,
        rejection: Rejection,
        deadline: Deadline,
    ) -> AnswerSteps:
        """The cloud's answer; where there is none, the device's after all."""
        rejected_by, reason = rejection
        shown = local is not None and bool(local.text)
        tokens = local.receipt.prompt_tokens if local else self._preflight.count(ask.messages)
        asking = self._remote.ask(ask, verdict, prompt_tokens=tokens, deadline=deadline)
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
                elif isinstance(event, TextDelta):
                    said.append(event.text)
                yield event
        except StopIteration as end:
            asked: CloudResult = end.value
            return asked.reply(reason, local, rejected_by)
        except NoCloudAnswer as error:
            refusal, cost = str(error), error.cost
            queued = self._later.keep(error, ask, verdict)
        finally:
            asking.close()
        if ask.cancel.is_set() and began:
            reason = f"{reason}; cancelled"
            return HybridReply("".join(said), "cloud", reason, True, local, cost=cost)
        if local is None or local.aborted:
            if shown or began:
                yield Restart(refusal)
            left = ask.options
            if left.deadline is not None:
                left = replace(left, deadline=max(deadline.remaining, 1e-3))
            again = replace(ask, options=left)
            local = yield from self._device.answer(again, self._confidence, cloud_allowed=False)
        elif began:
            yield Restart(refusal)
            yield TextDelta(local.text, "local")
        reason = f"{reason}; {refusal}" + ("" if queued is None else "; asked again later")
        return local_reply(
            local, reason, low_confidence=True, cost=cost, rejected_by=rejected_by, queued=queued
        )

    def _write_down(
        self, reply: HybridReply, messages: Messages, verdict: UploadVerdict, started: float
    ) -> None:
        if self._journal is not None:
            bundle = self._model.runtime.engine.kv_identity.model
            record_decision(self._journal, reply, messages, verdict, started=started, bundle=bundle)


def _samples_phrase(local: LocalDraft) -> str:
    return f" after {local.answers} answers" if local.answers > 1 else ""
