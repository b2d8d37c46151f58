"""One client: the device first, the cloud where it is worth it and allowed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal

from typing_extensions import Self, Unpack

from edgesdk.decode.options import OptionChanges, Options, options_from
from edgesdk.errors import ContextOverflow, DeadlineExceeded, RequestError
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
from edgesdk.model import Model
from edgesdk.text.prompts import Prompt, messages_of

Prefer = Literal["local", "cloud"]
HybridEvent = Piece | Restart
Messages = list[dict[str, Any]]

_LOG = logging.getLogger("edgesdk.hybrid")


class HybridStream(Iterator[HybridEvent]):
    """Pieces of an answer. After a `Restart` all pieces before it are void: another answers."""

    def __init__(self, steps: Generator[HybridEvent, None, HybridReply]) -> None:
        self._steps = steps
        self._reply: HybridReply | None = None

    def __next__(self) -> HybridEvent:
        try:
            return next(self._steps)
        except StopIteration as end:
            self._reply = end.value or self._reply
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class HybridClient:
    """Answers on the device, and asks a cloud model where that answer is not to be trusted.

    Before anything is sent the policy is asked, then the budget. Where either is against it, or
    the cloud cannot be reached, the device's answer comes back, marked as of low confidence. The
    client opens no socket and starts no thread before the first question to the cloud.

    Args:
        model: the device's. It stays the caller's to close.
        cloud: endpoints in order of preference; none makes a client that only ever answers here.
        policy: what may leave the device.
        budget: what the cloud may cost; None for no limit.
        journal: where decisions are written down; None for nowhere.
        confidence: how sure an answer has to be.
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
        on_break: OnBreak = "restart",
    ) -> None:
        clouds = [cloud] if isinstance(cloud, Cloud) else cloud
        self._model = model
        self._policy = policy or Policy()
        self._journal = journal
        self._confidence = confidence or Confidence()
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
                asked. From the iteration, as are the next two.
            DeadlineExceeded: the deadline passed before the first token of an answer.
            EngineError: the engine failed.
        """
        checked = options_from(options)
        messages = messages_of(prompt)
        verdict = self._policy.judge(messages, call=upload, tags=tags)
        return HybridStream(self._answer(messages, checked, verdict, prefer))

    def close(self) -> None:
        """End all questions to the cloud. The model stays open."""
        self._asker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(
        self, messages: Messages, options: Options, verdict: Verdict, prefer: Prefer | None
    ) -> Generator[HybridEvent, None, HybridReply]:
        started = time.monotonic()
        deadline = Deadline(options.deadline)
        can_leave = (
            self._asker.possible and verdict.upload != "local_only" and prefer != "local"
        )
        local: LocalDraft | None = None
        reason = "the app prefers the cloud"
        if not (can_leave and prefer == "cloud"):
            try:
                local = yield from _pieces(
                    draft(
                        self._model.runtime,
                        messages,
                        options,
                        self._confidence,
                        may_give_up=can_leave,
                    )
                )
                reason = self._objection(local)
            except ContextOverflow:
                if not can_leave:
                    raise
                reason = "the prompt does not fit the device's model"
        if local is not None and (not reason or prefer == "local"):
            said = "confident enough" if not reason else "the app prefers the device"
            reply = HybridReply(local.text, "local", said, bool(reason), local)
            self._write_down(reply, messages, verdict, started)
            return reply
        reply = yield from self._from_cloud(
            messages, options, verdict, local, reason, deadline, can_leave
        )
        self._write_down(reply, messages, verdict, started)
        return reply

    def _from_cloud(
        self,
        messages: Messages,
        options: Options,
        verdict: Verdict,
        local: LocalDraft | None,
        reason: str,
        deadline: Deadline,
        can_leave: bool,
    ) -> Generator[HybridEvent, None, HybridReply]:
        shown = bool(local and local.text)
        vault = Vault(self._policy.detectors)
        tokens = self._model.count(messages) if local is None else local.receipt.prompt_tokens
        asking = self._asker.ask(
            messages, options, verdict, vault, prompt_tokens=tokens, deadline=deadline
        )
        try:
            event = next(asking)
            if shown:
                yield Restart(reason)
            shown = True
            yield event
            asked = yield from asking
        except StopIteration as end:
            if shown:
                yield Restart(reason)
            asked = end.value
        except NotAsked as error:
            return (yield from self._fallback(messages, options, local, reason, str(error), shown))
        return _cloud_reply(asked, local, reason)
