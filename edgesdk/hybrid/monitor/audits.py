"""Compares a few answers that the device kept with the cloud's, in the background."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeAlias

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.confidence.threshold import same_answer
from edgesdk.hybrid.privacy.policy import Messages, Policy, UploadVerdict
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.remote import NoCloudAnswer, RemoteModel
from edgesdk.hybrid.reply import HybridReply, LocalDraft
from edgesdk.hybrid.request import HybridRequest
from edgesdk.hybrid.request_path import decision_of, record_decision
from edgesdk.hybrid.storage.journal import DecisionRecord, Journal
from edgesdk.hybrid.stream import read_to_end
from edgesdk.request import Request
from edgesdk.system.cancellation import CancellationToken
from edgesdk.system.closing import Closeable

_LOG = logging.getLogger("edgesdk.hybrid")

# More would wait for minutes; what does not fit is not audited.
_MAX_QUEUED = 16
_AUDIT_DEADLINE = 120.0

Judge: TypeAlias = Callable[[Messages, str, str], bool]


def _same_answer(messages: Messages, local: str, cloud: str) -> bool:
    return same_answer(cloud, local)


@dataclass(frozen=True)
class Audits:
    """Settings: how many kept answers are compared with the cloud's. Giving them is consent.

    Only requests that the policy lets leave without asking anybody ("redact" or "allow") are ever
    audited, and they leave as others do: redacted where that is the rule, and within the budget.

    Attributes:
        share: of the kept answers that are audited, 0 to 1; drawn at random.
        judge: says, of the messages, the device's answer and the cloud's, whether the device is
            right; the default is `edgesdk.hybrid.confidence.threshold.same_answer`. It is called in
            a thread of the client's. An error of the cloud that it takes for the truth counts
            against the device.
        chance: draws a number from 0 to 1.

    Raises:
        InvalidOption: the share is none.
    """

    share: float = 0.03
    judge: Judge = _same_answer
    chance: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InvalidOption(f"The share of audits must be from 0 to 1, not {self.share}.")


@dataclass(frozen=True)
class AuditCandidate:
    """A kept answer that may be audited.

    Attributes:
        calibration: id of the one by which it was kept; empty where there was none.
    """

    request: Request
    verdict: UploadVerdict
    draft: LocalDraft
    calibration: str


class Auditor(Closeable):
    """Asks the cloud about kept answers, one after the other, in a thread of its own.

    The thread starts with the first audit. Closing ends the audit that is under way, drops those
    that wait, and waits for the thread.

    Args:
        on_outcome: called with each audit, in the thread, before it is recorded.
    """

    def __init__(
        self,
        audits: Audits,
        remote: RemoteModel,
        policy: Policy,
        journal: Journal,
        *,
        bundle: str,
        on_outcome: Callable[[DecisionRecord], None],
    ) -> None:
        self._audits = audits
        self._remote = remote
        self._policy = policy
        self._journal = journal
        self._bundle = bundle
        self._on_outcome = on_outcome
        self._waiting: queue.Queue[AuditCandidate | None] = queue.Queue(_MAX_QUEUED)
        self._guard = threading.Lock()
        self._closing = CancellationToken()
        self._thread: threading.Thread | None = None

    def offer(self, candidate: AuditCandidate) -> None:
        """Audit an answer if it is drawn; returns at once."""
        leaves = candidate.verdict.upload in ("redact", "allow")
        if not (leaves and self._remote.available and self._audits.chance() < self._audits.share):
            return
        with self._guard:
            if self._closing.cancelled:
                return
            try:
                self._waiting.put_nowait(candidate)
            except queue.Full:
                _LOG.info("an answer was not audited: %d others wait", _MAX_QUEUED)
                return
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="edgesdk-audits", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """End all audits."""
        with self._guard:
            self._closing.cancel()
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        # Wakes a thread that waits; one that does not looks at `_closing` anyway.
        with suppress(queue.Full):
            self._waiting.put_nowait(None)
        thread.join()
        self._remote.close()

    def _work(self) -> None:
        while (candidate := self._waiting.get()) is not None and not self._closing.cancelled:
            try:
                self._audit(candidate)
            except Exception:
                # The next one is to be made all the same.
                _LOG.warning("an audit failed", exc_info=True)

    def _audit(self, candidate: AuditCandidate) -> None:
        started = time.time()
        result, agreed, reason = None, None, ""
        try:
            result = self._ask(candidate)
        except NoCloudAnswer as error:
            reason = f"not audited: {error}"
        except Exception as error:
            # A detector's, say; it may quote the prompt.
            reason = f"not audited: asking failed with {type(error).__name__}"
        if self._closing.cancelled:
            return
        if result is not None:
            agreed, reason = self._judged(candidate, result)
        # Recorded as the reply of both, which the user did not get.
        reply = result or HybridReply(candidate.draft.text, "audit", reason)
        reply = replace(reply, route="audit", reason=reason, local=candidate.draft)
        decision = replace(
            decision_of(reply, candidate.verdict, bundle=self._bundle, started=started),
            calibration=candidate.calibration,
            agreed=agreed,
            finish_reason=result.finish_reason if result else "",
        )
        if agreed is not None:
            self._on_outcome(decision)
        record_decision(self._journal, decision, candidate.request.messages, reply)

    def _ask(self, candidate: AuditCandidate) -> HybridReply:
        request = candidate.request.replaced(
            options=replace(candidate.request.options, deadline=_AUDIT_DEADLINE),
            cancellation=self._closing,
            started=time.perf_counter(),
        )
        steps = self._remote.ask(
            HybridRequest(request, Redactor(self._policy.detectors)),
            candidate.verdict,
            prompt_tokens=candidate.draft.receipt.prompt_tokens,
        )
        return read_to_end(steps)

    def _judged(self, candidate: AuditCandidate, result: HybridReply) -> tuple[bool | None, str]:
        if not result.complete:
            return None, "not audited: the cloud's answer is not whole"
        try:
            agreed = bool(
                self._audits.judge(candidate.request.messages, candidate.draft.text, result.text)
            )
        except Exception as error:
            # The error itself may quote the answers.
            return None, f"not audited: the judge failed with {type(error).__name__}"
        return agreed, "the cloud agreed" if agreed else "the cloud did not agree"
