"""Ties threshold, risk guarantee and audits of one client together."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Sequence
from typing import Any

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.spending import Budget
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.confidence.threshold import (
    Check,
    Labels,
    Progress,
    label_answers,
    labels_in_journal,
)
from edgesdk.hybrid.local import LocalModel
from edgesdk.hybrid.monitor.audits import AuditCandidate, Auditor, Audits
from edgesdk.hybrid.monitor.guarantee import (
    CalibrationRecord,
    CalibrationStore,
    GuaranteeMonitor,
    RiskGuarantee,
    calibration_key,
)
from edgesdk.hybrid.privacy.policy import Policy, UploadVerdict
from edgesdk.hybrid.remote import RemoteModel
from edgesdk.hybrid.reply import HybridReply, LocalDraft
from edgesdk.hybrid.storage.journal import Journal
from edgesdk.model import Model
from edgesdk.options import Options
from edgesdk.request import Request
from edgesdk.system.closing import Closeable
from edgesdk.text.prompts import Prompt


class Monitor(Closeable):
    """Keeps the threshold in force, and what is guaranteed of it. Several threads may use it.

    Args:
        device: makes the answers.
        base: the app's own setting, by which answers are made, whatever threshold then decides
            about them: a threshold must not change what it was chosen for.
        calibrations: those of the client's profile; None keeps one for as long as this lives.
        audits: the app's consent to audits; None for none.

    Raises:
        InvalidOption: there are to be audits, but no journal.
    """

    def __init__(
        self,
        model: Model,
        device: LocalModel,
        base: Confidence,
        clouds: Sequence[Cloud],
        policy: Policy,
        budget: Budget | None,
        journal: Journal | None,
        *,
        calibrations: CalibrationStore | None = None,
        audits: Audits | None = None,
    ) -> None:
        self._model = model
        self._device = device
        self._has_cloud = bool(clouds)
        self._base = base
        self._fingerprint = device.fingerprint(base)
        self._guarantee = GuaranteeMonitor(
            base,
            calibration_key(model, clouds, base, self._fingerprint),
            calibrations=calibrations,
            journal=journal,
        )
        self._auditor: Auditor | None = None
        if audits is not None:
            if journal is None:
                raise InvalidOption(
                    "Audits need a journal, because only many of them together tell something.",
                    hint="Give the client a Journal, or no audits.",
                )
            self._auditor = Auditor(
                audits,
                RemoteModel(clouds, policy, budget, "restart"),
                policy,
                journal,
                bundle=model.runtime.engine.kv_identity.model,
                on_outcome=self._guarantee.observe_audit,
            )

    @property
    def confidence(self) -> Confidence:
        """The confidence whose threshold decides now."""
        return self._guarantee.guarantee.confidence

    @property
    def guarantee(self) -> RiskGuarantee:
        """The risk guarantee in force."""
        return self._guarantee.guarantee

    def calibrate(
        self,
        labelled: Iterable[tuple[Prompt, Check]] | Journal,
        options: Options,
        *,
        alpha: float,
        delta: float,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> CalibrationRecord:
        """Find the loosest threshold with a risk guarantee, and use it from now on.

        With probability 1 - `delta`, at most the share `alpha` of the answers that the device keeps
        is wrong. In a profile the threshold also holds at the next starts. Where the labels allow
        no guarantee, nothing is kept any more; the result's `calibration` says so in its `phrase`,
        and how many more labels might do.

        The guarantee covers requests that may leave the device. Where the router or
        self-consistency make a difference, other requests are answered in another way, and nothing
        is guaranteed of them.

        Args:
            labelled: prompts, drawn as those to come will be, none of which trained the
                confidence, each with the expected answer (see
                `edgesdk.hybrid.confidence.threshold.same_answer`) or what tells whether an answer
                is right; or a journal with labels, with which nothing is run.
            options: with which answers are made later.
            progress: called after each prompt with how many are done, and how many there are or
                None.
            cancel: ends it when set, between two tokens.

        Raises:
            InvalidOption: alpha or delta is no probability.
            RequestError: it was cancelled, or a prompt is none. Nothing was changed.
            Exception: whatever a check raises. Nothing was changed.
        """
        labels: Labels
        if isinstance(labelled, Journal):
            bundle = self._model.runtime.engine.kv_identity.model
            labels = labels_in_journal(labelled.entries(), self._base, bundle=bundle)
        else:

            def drafting(
                messages: list[dict[str, Any]],
            ) -> Generator[object, None, LocalDraft | None]:
                return self._device.draft_for_calibration(
                    messages, options, self._base, cloud_allowed=self._has_cloud
                )

            labels = label_answers(labelled, drafting, progress=progress, cancel=cancel)
        return self._guarantee.calibrate(labels, alpha=alpha, delta=delta)

    def observe_answer(
        self,
        request: Request,
        verdict: UploadVerdict,
        reply: HybridReply,
        *,
        chosen: bool,
    ) -> None:
        """Watch an answer that a user has got; returns at once.

        Args:
            chosen: whether the confidence chose it, rather than the app.
        """
        local = reply.local
        if local is None or not chosen:
            return
        # Requests that may not leave skip the router and self-consistency; the labels did not.
        may_leave = verdict.upload != "local_only"
        if not self._fingerprint or (not reply.rejected_by and may_leave) or not self._has_cloud:
            self._guarantee.observe_draft(local)
        if self._auditor is not None and reply.route == "local" and not reply.low_confidence:
            self._auditor.offer(
                AuditCandidate(request, verdict, local, self._guarantee.calibration)
            )

    def close(self) -> None:
        """End all audits."""
        if self._auditor is not None:
            self._auditor.close()
