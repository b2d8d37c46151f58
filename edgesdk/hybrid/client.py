"""One client: the device first, the cloud where it is worth it and allowed."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from typing_extensions import Unpack

from edgesdk.closing import Closes
from edgesdk.decode.options import OptionChanges, Options, options_from
from edgesdk.errors import RequestError
from edgesdk.hybrid.asking import Asked, CloudAsker, NotAsked
from edgesdk.hybrid.auditing import Audits
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
from edgesdk.hybrid.promise import Promise
from edgesdk.hybrid.records.decision import Decision, Texts
from edgesdk.hybrid.records.journal import Journal
from edgesdk.hybrid.reply import HybridReply, LocalDraft
from edgesdk.hybrid.spending.budget import Budget
from edgesdk.hybrid.stream import HybridEvent, HybridStream
from edgesdk.hybrid.trust.calibrating import Check, Progress
from edgesdk.hybrid.trust.calibrations import Calibrated
from edgesdk.hybrid.trust.confidence import KEPT_AS, Confidence, confidence_from
from edgesdk.hybrid.trust.kept import Kept, kept_for
from edgesdk.hybrid.trusting import Trust
from edgesdk.model import Model
from edgesdk.scheduling import Cancel
from edgesdk.text.prompts import Prompt, messages_of

Prefer = Literal["local", "cloud"]
Messages: TypeAlias = list[dict[str, Any]]

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
        confidence: how sure an answer has to be, where no calibration says; None for the one that
            is kept for this model, else for a plain one.
        gate: when the device does not even try.
        effort: what more it does where it is unsure; None for nothing.
        kept: what was learned of the model; None for what the store has, or came with the bundle.
        calibrations, audits: see `edgesdk.hybrid.trusting.Trust`.
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
        calibrations: str | Path | None = None,
        audits: Audits | None = None,
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
        self._asker = CloudAsker(clouds, self._policy, budget, on_break)

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
        cancel = self._model.runtime.cancel_event()
        return HybridStream(self._answer(messages, checked, verdict, prefer, cancel), cancel)

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

    def close(self) -> None:
        """End all questions to the cloud. The model stays open."""
        self._trust.close()
        self._asker.close()

    def _answer(
        self,
        messages: Messages,
        options: Options,
        verdict: Verdict,
        prefer: Prefer | None,
        cancel: Cancel,
    ) -> Generator[HybridEvent, None, HybridReply]:
        started, deadline = time.time(), Deadline(options.deadline)
        may_leave = self._asker.possible and verdict.upload != "local_only" and prefer != "local"
        local: LocalDraft | None = None
        objection: Objection | None = _PREFERRED
        if not (may_leave and prefer == "cloud"):
            local, objection = yield from self._local(messages, options, may_leave, prefer, cancel)
        if local is not None and (objection is None or cancel.is_set()):
            reason = "cancelled" if cancel.is_set() else f"sure enough{_tries(local)}"
            reply = HybridReply(local.text, "local", reason, cancel.is_set(), local)
        else:
            assert objection is not None, "without a draft there is a reason why"
            reply = yield from self._elsewhere(
                messages, options, verdict, local, objection, deadline, cancel
            )
        self._write_down(reply, messages, verdict, started)
        chosen = prefer is None and not cancel.is_set()
        self._trust.answered(messages, options, verdict, reply, chosen=chosen)
        return reply

    def _local(
        self,
        messages: Messages,
        options: Options,
        may_leave: bool,
        prefer: Prefer | None,
        cancel: Cancel,
    ) -> Generator[HybridEvent, None, tuple[LocalDraft | None, Objection | None]]:
        """A draft, and what speaks against keeping it."""
        if may_leave:
            objection = self._keeper.objection(messages, options)
            if objection is not None:
                return None, objection
        local = yield from self._device.answer(
            messages, options, self._trust.base, cancel,
            others=may_leave, threshold=self._trust.confidence.threshold,
        )  # fmt: skip
        if prefer == "local":
            return local, None
        if local.confidence is None:
            return local, Objection("", "the device said nothing")
        if local.doubted or local.confidence < self._trust.confidence.threshold:
            unsure = f"the device was unsure ({local.confidence:.2f}{_tries(local)})"
            return local, Objection("", unsure)
        return local, None

    def _elsewhere(
        self,
        messages: Messages,
        options: Options,
        verdict: Verdict,
        local: LocalDraft | None,
        objection: Objection,
        deadline: Deadline,
        cancel: Cancel,
    ) -> Generator[HybridEvent, None, HybridReply]:
        """The cloud's answer; where there is none, the device's after all."""
        gate, reason = objection
        shown = local is not None and bool(local.text)
        vault = Vault(self._policy.detectors)
        tokens = local.receipt.prompt_tokens if local else self._keeper.count(messages)
        asking = self._asker.ask(
            messages, options, verdict, vault,
            prompt_tokens=tokens, deadline=deadline, cancel=cancel,
        )  # fmt: skip
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
                else:
                    said.append(event.text)
                yield event
        except StopIteration as end:
            asked: Asked = end.value
            return HybridReply(
                asked.answer.text, "cloud", reason, False, local, asked.answer, asked.cost, gate
            )
        except NotAsked as error:
            refusal, cost = str(error), error.cost
        finally:
            asking.close()
        if cancel.is_set() and began:
            reason = f"{reason}; cancelled"
            return HybridReply("".join(said), "cloud", reason, True, local, cost=cost)
        if local is None or local.given_up:
            if shown or began:
                yield Restart(refusal)
            left = replace(options, deadline=deadline.seconds) if options.deadline else options
            local = yield from self._device.answer(
                messages, left, self._trust.base, cancel, others=False
            )
        elif began:
            yield Restart(refusal)
            yield Piece(local.text)
        reason = f"{reason}; {refusal}"
        return HybridReply(local.text, "local", reason, True, local, cost=cost, gate=gate)

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
            doubted=local is not None and local.doubted,
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


def _tries(local: LocalDraft) -> str:
    return f" after {local.answers} answers" if local.answers > 1 else ""


def _tokens(local: LocalDraft | None, name: str) -> int:
    return 0 if local is None else int(getattr(local.receipt, name))
