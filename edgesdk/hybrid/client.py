"""One client: the device first, the cloud where it is worth it and allowed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import Unpack

from edgesdk.errors import InvalidOption
from edgesdk.generation.streaming import read_all, read_all_async
from edgesdk.hybrid.chat import HybridChat, HybridOverflow, rules_of
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.failover import OnBreak
from edgesdk.hybrid.cloud.spending import Budget
from edgesdk.hybrid.confidence.artifacts import profile_store, shipped_artifacts
from edgesdk.hybrid.confidence.confidence import CONFIDENCE_ARTIFACT, Confidence
from edgesdk.hybrid.confidence.threshold import Check, Progress, label_answers, labels_in_journal
from edgesdk.hybrid.local import LocalModel
from edgesdk.hybrid.offline.queue import DeferredReply, OfflineQueue
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.remote import RemoteModel
from edgesdk.hybrid.reply import HybridReply
from edgesdk.hybrid.request import ConversationState, HybridKwargs, HybridRequest, split_rules
from edgesdk.hybrid.request_path import RequestPath
from edgesdk.hybrid.router import Preflight, Router
from edgesdk.hybrid.self_consistency import SelfConsistency
from edgesdk.hybrid.storage.journal import Journal
from edgesdk.hybrid.stream import AsyncHybridStream, HybridStream
from edgesdk.model import Model
from edgesdk.options import OptionsKwargs
from edgesdk.session import restore_chat
from edgesdk.system.closing import Closeable
from edgesdk.text.prompts import Prompt, as_messages

if TYPE_CHECKING:
    from edgesdk.hybrid.monitor.audits import Audits
    from edgesdk.hybrid.monitor.guarantee import CalibrationRecord, RiskGuarantee
    from edgesdk.hybrid.monitor.monitor import Monitor


class HybridClient(Closeable):
    """Answers on the device, and asks a cloud model where the device is not sure enough.

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
            was learned of this model, else for an untrained one.
        router: when the device does not even try.
        self_consistency: what more it does where it is unsure; None for nothing.
        profile: where what is learned of the model (`train_profile`) and calibrated (`calibrate`)
            is stored and found: a name of the app's own, for a folder in the device's store, or
            a folder. Apps with other prompts take another name; what one of them learns changes
            nothing for the others. None uses nothing that was learned on this device, only what
            the bundle brings, and a calibration then lasts as long as the client.
        audits: checks a few kept answers in the background; see
            `edgesdk.hybrid.monitor.audits.Audits`.
        on_break: what becomes of a cloud's answer that breaks off after its first token:
            "restart" begins it again elsewhere, "incomplete" ends it with what there is.
        hedge_after: seconds without a first token after which the next endpoint is asked too, and
            the first token decides; None for never. It costs what it brings: an endpoint may
            charge for the reply that nobody reads.
        queue: where requests wait that could not go to the cloud; None for nowhere.

    Attributes:
        path: answers requests of those who make their own, as servers do.

    Raises:
        InvalidOption: an option has no such value, the profile's name is none, or the budget limits
            money and the prices of a cloud are not known.
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
        on_break: OnBreak = "restart",
        hedge_after: float | None = None,
        profile: str | Path | None = None,
        audits: Audits | None = None,
        queue: OfflineQueue | None = None,
    ) -> None:
        self._model = model
        self._policy = policy or Policy()
        self._budget = budget
        self._journal = journal
        self._clouds = (cloud,) if isinstance(cloud, Cloud) else tuple(cloud)
        artifacts = shipped_artifacts(model.source)
        if profile is not None:
            artifacts = profile_store(profile, model.source)
        self._profile = None if profile is None else artifacts
        bundle = model.runtime.engine.kv_identity.model
        learned = artifacts and artifacts.load(bundle, CONFIDENCE_ARTIFACT, Confidence)
        self._confidence = confidence or learned or Confidence()
        preflight = Preflight(model, router or Router(), artifacts)
        self._device = LocalModel(model, preflight, self_consistency)
        self._remote = RemoteModel(self._clouds, self._policy, budget, on_break, hedge_after)
        self.path = RequestPath(
            self._policy, preflight, self._device, self._remote, self._confidence,
            journal=journal, queue=queue,
        )  # fmt: skip
        self._guard = threading.Lock()
        if profile is not None or audits is not None:
            self.path.monitor = self._new_monitor(audits)

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
            StructureError: neither the device nor the cloud gave an answer in the output format.
            DeadlineExceeded: the deadline passed before the first token of an answer.
            EngineError: the engine failed.
        """
        rules, changes = split_rules(options)
        request = self._model.runtime.request(as_messages(prompt), changes)
        hybrid = HybridRequest(request, Redactor(self._policy.detectors))
        verdict = self.path.evaluate(hybrid, upload=rules.upload, tags=rules.tags)
        return self.path.answer(hybrid, verdict, rules.prefer)

    async def arespond(self, prompt: Prompt, **options: Unpack[HybridKwargs]) -> HybridReply:
        """`respond` for asyncio; cancelling the task ends the answer."""
        return await read_all_async(self.astream(prompt, **options))

    def astream(self, prompt: Prompt, **options: Unpack[HybridKwargs]) -> AsyncHybridStream:
        """`stream` for asyncio; cancelling the task ends the answer."""
        return AsyncHybridStream(self.stream(prompt, **options))

    def chat(self, system: str | None = None, *, overflow: HybridOverflow = "error") -> HybridChat:
        """Start a conversation, with a KV cache and placeholders of its own.

        Args:
            overflow: what the device does with a conversation that is too long for it and that the
                cloud may not be asked about, or does not answer. "error" raises ContextOverflow;
                with "drop_oldest_turns" it sees the latest turns that fit, and the receipt says so.
        """
        return HybridChat(
            self.path, self._model, self._policy.detectors, system=system, overflow=overflow
        )

    def restore(self, path: str | Path, *, overflow: HybridOverflow = "error") -> HybridChat:
        """Go on with a conversation that `HybridChat.save` or `edgesdk.chat.Chat.save` wrote.

        What the file has in its KV cache is not computed again, and its turns keep their rules.

        Raises:
            RequestError: the file is damaged, holds no chat, or was saved with another model,
                engine or KV layout.
            ContextOverflow: it holds more tokens than this model was loaded for.
        """
        engine = self._model.runtime.engine
        state = engine.new_state()
        try:
            saved = restore_chat(Path(path), state)
            rules = rules_of(saved)
        except BaseException:
            state.close()
            raise
        return HybridChat(
            self.path, self._model, self._policy.detectors, system=saved.system, overflow=overflow,
            turns=saved.turns, rules=rules, states=ConversationState((engine, state)),
        )  # fmt: skip

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
        made_with = self._model.runtime.options(options)
        if isinstance(labelled, Journal):
            bundle = self._model.runtime.engine.kv_identity.model
            labels = labels_in_journal(labelled.entries(), self._confidence, bundle=bundle)
        else:
            drafting = partial(
                self._device.draft_for_calibration,
                options=made_with,
                confidence=self._confidence,
                cloud_allowed=bool(self._clouds),
            )
            labels = label_answers(labelled, drafting, progress=progress, cancel=cancel)
        return self._opened_monitor().calibrate(labels, alpha=alpha, delta=delta)

    @property
    def guarantee(self) -> RiskGuarantee:
        """The risk guarantee in force for the device's answers."""
        return self._opened_monitor().guarantee

    def flush_queue(self) -> Iterator[DeferredReply]:
        """Send the requests in the offline queue, and yield their replies as they come.

        The policy and the budget of now hold; see `edgesdk.hybrid.offline.queue.send_queued`.
        Several processes may do so at once.

        Raises:
            RequestError: the queue cannot be used.
        """
        return self.path.flush_queue()

    def close(self) -> None:
        """End all questions to the cloud. The model stays open."""
        if self.path.monitor is not None:
            self.path.monitor.close()
        self._remote.close()

    def _opened_monitor(self) -> Monitor:
        """Return the monitor; it is made, and its module loaded, when first needed."""
        with self._guard:
            if self.path.monitor is None:
                self.path.monitor = self._new_monitor(None)
            return self.path.monitor

    def _new_monitor(self, audits: Audits | None) -> Monitor:
        from edgesdk.hybrid.monitor.audits import Auditor
        from edgesdk.hybrid.monitor.guarantee import CalibrationStore, calibration_key
        from edgesdk.hybrid.monitor.monitor import Monitor

        # By the app's own setting answers are made, whatever threshold then decides about them: a
        # threshold must not change what it was chosen for.
        base, fingerprint = self._confidence, self._device.fingerprint(self._confidence)
        monitor = Monitor(
            base,
            calibration_key(self._model, self._clouds, base, fingerprint),
            calibrations=None if self._profile is None else CalibrationStore(self._profile.folder),
            journal=self._journal,
            routed=bool(fingerprint and self._clouds),
        )
        if audits is not None:
            if self._journal is None:
                raise InvalidOption(
                    "Audits need a journal, because only many of them together tell something.",
                    hint="Give the client a Journal, or no audits.",
                )
            # With a cloud client of its own, so that its failures and waits are not the users'.
            remote = RemoteModel(self._clouds, self._policy, self._budget, "restart")
            monitor.auditor = Auditor(
                audits, remote, self._policy, self._journal,
                bundle=self._device.bundle, on_outcome=monitor.observe_audit,
            )  # fmt: skip
        return monitor
