"""The path of a hybrid request: the device where it is good enough, else a cloud."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING

from edgesdk.errors import RequestError
from edgesdk.hybrid.cloud.cloud_reply import Restart, TextDelta
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.local import LocalModel
from edgesdk.hybrid.offline.queue import OfflineQueue
from edgesdk.hybrid.offline.sending import DeferredReply, DeferredRequests
from edgesdk.hybrid.privacy.policy import Policy, Upload, UploadVerdict
from edgesdk.hybrid.remote import CloudResult, NoCloudAnswer, RemoteModel
from edgesdk.hybrid.reply import HybridReply, LocalDraft, local_reply
from edgesdk.hybrid.request import HybridRequest, Messages, Prefer
from edgesdk.hybrid.router import Preflight, Rejection
from edgesdk.hybrid.storage.journal import DecisionRecord, Journal, RecordedTexts
from edgesdk.hybrid.stream import AnswerSteps, HybridEvent, HybridStream

if TYPE_CHECKING:
    from edgesdk.hybrid.monitor.monitor import Monitor

_LOG = logging.getLogger("edgesdk.hybrid")
_PREFERRED = Rejection("hint", "the app prefers the cloud")


class RequestPath:
    """Takes each request of one client to the device or to a cloud. Several threads may use it.

    Args:
        confidence: judges the drafts; its threshold holds where there is no monitor.
        journal: where decisions are recorded; None for nowhere.
        queue: where requests wait that could not go to the cloud; None for nowhere.

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
        self._journal = journal
        self._deferred = DeferredRequests(
            queue, policy, remote, local.encode, preflight.count, self._record
        )

    def evaluate(
        self, hybrid: HybridRequest, *, upload: Upload | None = None, tags: Iterable[str] = ()
    ) -> UploadVerdict:
        """Whether a request may leave the device; see `Policy.evaluate`."""
        return self._policy.evaluate(
            hybrid.request.messages, call=upload, tags=tags, extras=hybrid.extras
        )

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
        """
        return HybridStream(
            self._answer(hybrid, verdict, prefer), hybrid.request.cancellation, on_end
        )

    def flush_queue(self) -> Iterator[DeferredReply]:
        """Send the offline queue; see `edgesdk.hybrid.offline.sending.send_queued`."""
        return self._deferred.send_all()

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
            reason = "cancelled" if cancelled else f"sure enough{_samples_phrase(local)}"
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
        if local.confidence is None:
            return local, Rejection("", "the device said nothing")
        if local.problem is not None:
            return local, Rejection("", local.problem)
        if local.predicted_wrong or local.confidence < threshold:
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
        """Ask the cloud; where it gives no answer, fall back to the device."""
        request, (rejected_by, reason) = hybrid.request, rejection
        shown = local is not None and bool(local.text)
        tokens = local.receipt.prompt_tokens if local else self._preflight.count(hybrid)
        asking = self._remote.ask(hybrid, verdict, prompt_tokens=tokens)
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
            result: CloudResult = end.value
            return result.reply(reason, local, rejected_by)
        except NoCloudAnswer as error:
            refusal, cost = str(error), error.cost
            queued = self._deferred.defer(error, request, verdict)
        finally:
            asking.close()
        if request.cancellation.cancelled and began:
            reason = f"{reason}; cancelled"
            return HybridReply("".join(said), "cloud", reason, True, local, cost=cost)
        if local is None or local.aborted:
            if shown or began:
                yield Restart(refusal)
            local = yield from self._device.answer(hybrid, self._confidence, cloud_allowed=False)
        elif began:
            yield Restart(refusal)
            yield TextDelta(local.text, "local")
        reason = f"{reason}; {refusal}" + ("" if queued is None else "; asked again later")
        return local_reply(
            local, reason, low_confidence=True, cost=cost, rejected_by=rejected_by, queued=queued
        )

    def _record(
        self, reply: HybridReply, messages: Messages, verdict: UploadVerdict, started: float
    ) -> None:
        """Record in the journal what became of a request; the answer does not depend on it.

        Args:
            started: seconds since the epoch.
        """
        if self._journal is None:
            return
        local, cloud, receipt = reply.local, reply.cloud, reply.receipt
        ended = cloud or (local and local.receipt)
        record = DecisionRecord(
            at=started,
            route=reply.route,
            reason=reply.reason,
            upload=verdict.upload,
            kinds=tuple(sorted(verdict.kinds)),
            confidence=receipt.confidence,
            signals=local.measured if local else {},
            rejected_by=reply.rejected_by,
            predicted_wrong=local is not None and local.predicted_wrong,
            bundle=self._device.bundle,
            endpoint=cloud.endpoint if cloud else "",
            prompt_tokens=receipt.prompt_tokens or 0,
            output_tokens=receipt.output_tokens or 0,
            money=reply.cost.money,
            seconds=time.time() - started,
            finish_reason=ended.finish_reason if ended else "",
        )
        prompt = json.dumps(messages, ensure_ascii=False)
        texts = RecordedTexts(prompt, local.text if local else None, cloud.text if cloud else None)
        try:
            self._journal.append(record, prompt=prompt, texts=texts)
        except RequestError as error:
            _LOG.warning("a decision was not written down: %s", error)


def _samples_phrase(local: LocalDraft) -> str:
    return f" after {local.answers} answers" if local.answers > 1 else ""
