"""The path of a hybrid request: the device where it is good enough, else a cloud."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from edgesdk.errors import EdgeError, RequestError
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.content import without_reasoning
from edgesdk.hybrid.local import LocalModel
from edgesdk.hybrid.offline.queue import (
    DeferredReply,
    OfflineQueue,
    QueuedRequest,
    defer,
    send_queued,
)
from edgesdk.hybrid.privacy.policy import Policy, Upload, UploadQuestion, UploadVerdict
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.remote import NoAnswerCause, NoCloudAnswer, RemoteModel
from edgesdk.hybrid.reply import HybridReply, LocalDraft, cut_phrase, local_reply
from edgesdk.hybrid.request import HybridRequest, Messages, Prefer
from edgesdk.hybrid.router import Preflight, Rejection
from edgesdk.hybrid.storage.journal import DecisionRecord, Journal, RecordedTexts
from edgesdk.hybrid.stream import AnswerSteps, HybridEvent, HybridStream, Screen, read_to_end
from edgesdk.request import Request
from edgesdk.system.forks import ForkGuard

if TYPE_CHECKING:
    from edgesdk.hybrid.monitor.monitor import Monitor

_LOG = logging.getLogger("edgesdk.hybrid")
_PREFERRED = Rejection("hint", "the app prefers the cloud")


class RequestPath:
    """Takes each request of one client to the device or to a cloud. Several threads may use it.

    Args:
        confidence: judges the drafts; its threshold holds where there is no monitor.
        journal, queue: see `edgesdk.hybrid.client.HybridClient`.

    Attributes:
        monitor: knows the threshold that holds now; None for the confidence's own.
    """

    def __init__(
        self,
        policy: Policy,
        preflight: Preflight,
        local: LocalModel,
        remote: RemoteModel,
        confidence: Confidence,
        *,
        journal: Journal | None = None,
        queue: OfflineQueue | None = None,
    ) -> None:
        self.monitor: Monitor | None = None
        self._policy = policy
        self._preflight = preflight
        self._device = local
        self._remote = remote
        self._confidence = confidence
        self._fork_guard = ForkGuard("The hybrid client")
        self._journal = journal
        self._queue = queue

    def evaluate(
        self, hybrid: HybridRequest, *, upload: Upload | None = None, tags: Iterable[str] = ()
    ) -> UploadVerdict:
        """Whether a request may leave the device; see `Policy.evaluate`."""
        return self._policy.evaluate(
            without_reasoning(hybrid.request.messages),
            call=upload,
            tags=tags,
            extras=hybrid.extras,
        )

    def preview(self, hybrid: HybridRequest, verdict: UploadVerdict) -> UploadQuestion:
        """What a cloud would be sent if it were asked.

        Raises:
            RequestError: a detector failed; such a request stays on the device.
        """
        try:
            return self._remote.preview(hybrid, verdict)
        except NoCloudAnswer as error:
            raise RequestError(f"Nothing can be shown, nor sent: {error}.") from error

    def may_leave(self, verdict: UploadVerdict, prefer: Prefer | None = None) -> bool:
        """Whether a cloud may answer a request."""
        return self._remote.available and verdict.upload != "local_only" and prefer != "local"

    def answer(
        self,
        hybrid: HybridRequest,
        verdict: UploadVerdict,
        prefer: Prefer | None = None,
        on_end: Callable[[HybridReply | None], None] = lambda reply: None,
    ) -> HybridStream:
        """Answer a request.

        Args:
            on_end: called once, with the reply, or with None where there is none.

        Raises:
            RequestError: this process is a fork of the one that made the client.
        """
        self._fork_guard.check()
        return HybridStream(
            self._answer(hybrid, verdict, prefer), hybrid.request.cancellation, on_end
        )

    def flush_queue(self) -> Iterator[DeferredReply]:
        """Send the offline queue; see `edgesdk.hybrid.offline.queue.send_queued`."""
        self._fork_guard.check()
        return iter(()) if self._queue is None else send_queued(self._queue, self._send_queued)

    def _answer(
        self, hybrid: HybridRequest, verdict: UploadVerdict, prefer: Prefer | None
    ) -> AnswerSteps:
        started, request = time.time(), hybrid.request
        may_leave = self.may_leave(verdict, prefer)
        local: LocalDraft | None = None
        rejection: Rejection | None = _PREFERRED
        if not (may_leave and prefer == "cloud"):
            local, rejection = yield from self._local(hybrid, may_leave, prefer)
        cancelled = request.cancellation.cancelled
        if local is not None and (rejection is None or cancelled):
            reason = "cancelled" if cancelled else _kept_reason(local, prefer)
            reply = local_reply(local, reason, low_confidence=cancelled)
        else:
            assert rejection is not None, "without a draft there is a reason why"
            reply = yield from self._escalate(hybrid, verdict, local, rejection)
        self._record(reply, request.messages, verdict, started)
        # Output formats and tool calls are not covered by the guarantee, nor audited.
        chosen = prefer is None and not request.cancellation.cancelled and request.is_plain
        if self.monitor is not None:
            self.monitor.observe_answer(request, verdict, reply, chosen=chosen)
        return reply

    def _local(
        self, hybrid: HybridRequest, may_leave: bool, prefer: Prefer | None
    ) -> Generator[HybridEvent, None, tuple[LocalDraft | None, Rejection | None]]:
        """Make a draft; return it with the reason not to keep it."""
        if may_leave:
            rejection = self._preflight.check(hybrid)
            if rejection is not None:
                return None, rejection
        monitor = self.monitor
        threshold = (self._confidence if monitor is None else monitor.confidence).threshold
        local = yield from self._device.answer(
            hybrid, self._confidence, cloud_allowed=may_leave, threshold=threshold
        )
        if prefer == "local":
            return local, None
        if local.rejection is not None:
            return local, Rejection("", local.rejection)
        if local.predicted_wrong or local.confidence is None or local.confidence < threshold:
            unsure = f"the device was unsure ({local.confidence:.2f}{_samples_phrase(local)})"
            return local, Rejection("", unsure)
        return local, None

    def _escalate(
        self,
        hybrid: HybridRequest,
        verdict: UploadVerdict,
        local: LocalDraft | None,
        rejection: Rejection,
    ) -> AnswerSteps:
        """Ask the cloud; where it gives no whole answer, fall back to the device.

        The pieces after the last `Restart` are the text of the reply, whoever gave it.
        """
        request, (rejected_by, reason) = hybrid.request, rejection
        screen = Screen(local, append_only=hybrid.append_only)
        # Of all that is sent; the device may have seen less.
        tokens = self._preflight.count(hybrid)
        unanswered = local is None or local.aborted
        asking = self._remote.ask(hybrid, verdict, prompt_tokens=tokens, fallback=unanswered)
        reply: HybridReply | None = None
        cause: NoAnswerCause = "failed"
        try:
            reply = yield from screen.replace_by(asking, reason)
            refusal, cost, failures = "", reply.cost, reply.failures
            if not reply.complete:
                refusal = f"the cloud's answer {cut_phrase(reply.finish_reason)}"
            if reply.cloud is not None and reply.cloud.broke_off:
                cause = "away"
        except NoCloudAnswer as error:
            refusal, cost, cause = str(error), error.cost, error.cause
            failures = error.failures
        if request.cancellation.cancelled and screen.route == "cloud":
            reason = f"{reason}; cancelled"
            return HybridReply(screen.text, "cloud", reason, True, local, cost=cost)
        stays = hybrid.append_only and screen.route == "cloud" and bool(screen.text)
        if reply is not None:
            reply = replace(
                reply, reason=_joined(reason, refusal), local=local, rejected_by=rejected_by
            )
        if reply is not None and (reply.complete or stays):
            yield from screen.show(reply.text, "cloud", reason)
            return reply
        queued = defer(self._queue, cause, request, verdict)
        cut_at_limit = reply is not None and reply.finish_reason == "length"
        if (local is None or local.aborted) and not cut_at_limit:
            device = self._device.answer(hybrid, self._confidence, cloud_allowed=False)
            try:
                local = yield from screen.replace_by(device, refusal)
            except EdgeError:
                if reply is None:
                    raise
        reason = _joined(reason, refusal, "" if queued is None else "asked again later")
        if reply is not None and (local is None or reply.rank >= local.rank):
            yield from screen.show(reply.text, "cloud", refusal)
            return replace(reply, reason=reason, local=local, queued=queued)
        assert local is not None, "a device that cannot answer raises an error"
        yield from screen.show(local.text, "local", refusal)
        return local_reply(
            local, reason, low_confidence=True, cost=cost, rejected_by=rejected_by, queued=queued,
            failures=failures,
        )  # fmt: skip

    def _send_queued(self, queued: QueuedRequest, seconds: float, key: str) -> HybridReply:
        """Ask the cloud, under the policy of now or of then, whichever is stricter.

        If two processes send the same request, because one died, the cloud gets the same text and
        key twice.
        """
        started = time.time()
        options = replace(queued.options, deadline=seconds)
        request = Request(queued.messages, options, self._device.encode)
        hybrid = HybridRequest(request, Redactor(self._policy.detectors, seed=key), key=key)
        now = self.evaluate(hybrid, upload=queued.call, tags=queued.tags)
        verdict = now.tightened(queued.upload, "the rule when it was asked")
        tokens = self._preflight.count(hybrid)
        steps = self._remote.ask(hybrid, verdict, prompt_tokens=tokens)
        reply = replace(read_to_end(steps), reason="asked again from the queue")
        self._record(reply, request.messages, verdict, started)
        return reply

    def _record(
        self, reply: HybridReply, messages: Messages, verdict: UploadVerdict, started: float
    ) -> None:
        """Record in the journal what became of a request; the answer does not depend on it.

        Args:
            started: seconds since the epoch.
        """
        if self._journal is not None:
            record = decision_of(reply, verdict, bundle=self._device.bundle, started=started)
            record_decision(self._journal, record, messages, reply)


def decision_of(
    reply: HybridReply, verdict: UploadVerdict, *, bundle: str, started: float
) -> DecisionRecord:
    """What a journal keeps of a reply that has just ended; `started` is in seconds since the
    epoch."""
    local, cloud, receipt = reply.local, reply.cloud, reply.receipt
    return DecisionRecord(
        at=started,
        route=reply.route,
        reason=reply.reason,
        upload=verdict.upload,
        kinds=tuple(sorted(verdict.kinds)),
        confidence=receipt.confidence,
        signals=local.measured if local else {},
        rejected_by=reply.rejected_by,
        predicted_wrong=local is not None and local.predicted_wrong,
        bundle=bundle,
        endpoint=cloud.endpoint if cloud else "",
        prompt_tokens=receipt.prompt_tokens or 0,
        output_tokens=receipt.output_tokens or 0,
        money=reply.cost.money,
        seconds=time.time() - started,
        finish_reason=reply.finish_reason,
        local_finish_reason=local.receipt.finish_reason if local else "",
    )


def record_decision(
    journal: Journal, decision: DecisionRecord, messages: Messages, reply: HybridReply
) -> None:
    """Write a decision down; where that fails, only the log hears of it."""
    local, cloud = reply.local, reply.cloud
    prompt = json.dumps(without_reasoning(messages), ensure_ascii=False)
    texts = RecordedTexts(
        prompt, local.text if local else None, cloud.text if cloud else None, decision.agreed
    )
    try:
        journal.append(decision, prompt=prompt, texts=texts)
    except RequestError as error:
        _LOG.warning("a decision was not written down: %s", error)


def _kept_reason(local: LocalDraft, prefer: Prefer | None) -> str:
    if prefer == "local":
        return "the app prefers the device"
    return f"sure enough{_samples_phrase(local)}"


def _joined(*phrases: str) -> str:
    return "; ".join(phrase for phrase in phrases if phrase)


def _samples_phrase(local: LocalDraft) -> str:
    return f" after {local.answers} answers" if local.answers > 1 else ""
