"""Puts requests into the offline queue, and sends them when the cloud is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias

from edgesdk.errors import EdgeError, RequestError
from edgesdk.hybrid.offline.queue import OfflineQueue, QueuedRequest, queued_request
from edgesdk.hybrid.privacy.policy import Policy, UploadVerdict, strictest
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.remote import CloudResult, NoCloudAnswer, RemoteModel
from edgesdk.hybrid.reply import HybridReply
from edgesdk.hybrid.request import HybridRequest, Messages
from edgesdk.system.cancellation import CancellationToken

WritesDown: TypeAlias = Callable[[HybridReply, Messages, UploadVerdict, float], None]

_LOG = logging.getLogger("edgesdk.hybrid")


class DeferredRequests:
    """Keeps requests in a queue, and sends them from there.

    Args:
        queue: None to keep nothing.
        count: tokens of a prompt.
        write_down: hears of each answer, and of when it was asked for: seconds since the epoch.
    """

    def __init__(
        self,
        queue: OfflineQueue | None,
        policy: Policy,
        remote: RemoteModel,
        count: Callable[[Messages], int],
        write_down: WritesDown,
    ) -> None:
        self._queue = queue
        self._policy = policy
        self._remote = remote
        self._count = count
        self._write_down = write_down

    def keep(self, error: NoCloudAnswer, ask: HybridRequest, verdict: UploadVerdict) -> int | None:
        """Put a request that came to nothing into the queue, if another time may be better; its id
        there. The checks of tools and forms are the caller's, and do not outlive it, so requests
        with them do not wait."""
        if self._queue is None or error.cause != "away" or not ask.is_plain:
            return None
        try:
            return self._queue.put(queued_request(ask.messages, ask.options, verdict))
        except RequestError as problem:
            _LOG.warning("a request was not kept for later: %s", problem)
            return None

    def flush(self) -> Iterator[DeferredReply]:
        """See `edgesdk.hybrid.offline.sending.flush`."""
        return iter(()) if self._queue is None else flush(self._queue, self._send)

    def _send(self, held: QueuedRequest, deadline: CancellationToken, key: str) -> HybridReply:
        """The cloud's answer, under the policy of now or of then, whichever is stricter.

        Sent by two processes, because one died, it is one request with one text to the cloud.
        """
        started = time.time()
        redactor = Redactor(self._policy.detectors, seed=key)
        ask = HybridRequest(held.messages, held.options, redactor, key=key)
        now = self._policy.evaluate(
            ask.messages, call=held.call, tags=held.tags, besides=ask.besides
        )
        verdict = strictest(
            now, UploadVerdict(held.upload, "the rule when it was asked", now.kinds)
        )
        tokens = self._count(ask.messages)
        asking = self._remote.ask(ask, verdict, prompt_tokens=tokens, deadline=deadline)
        with closing(asking):
            while True:
                try:
                    next(asking)
                except StopIteration as end:
                    asked: CloudResult = end.value
                    break
        reply = asked.reply("asked again from the queue", None, "")
        self._write_down(reply, ask.messages, verdict, started)
        return reply


@dataclass(frozen=True)
class DeferredReply:
    """The cloud's answer to a request that had to wait.

    Attributes:
        id: `HybridReply.queued` of the answer that the device gave meanwhile.
        asked_at: seconds since the epoch.
        messages: that were asked.
    """

    id: int
    asked_at: float
    messages: list[dict[str, Any]]
    reply: HybridReply


def flush(
    queue: OfflineQueue, send: Callable[[QueuedRequest, CancellationToken, str], HybridReply]
) -> Iterator[DeferredReply]:
    """Send what waits, one request after the other, until all were sent or the cloud is away.

    A request that cannot be paid now, or whose answer broke off, waits on. One that may not leave
    any more, or that no endpoint takes, is dropped. An answer is out of the queue before it is
    given out: a process that dies in between has lost it, one that dies before has not, and the
    next one sends the same request with the same key.

    Args:
        send: is given an idempotency key, too, the same each time; raises NoCloudAnswer.

    Raises:
        RequestError: the queue cannot be used.
    """
    reached = 0
    while (claim := queue.claim(after=reached)) is not None:
        waiting, held = claim.waiting, claim.held
        reached = waiting.id
        try:
            reply = send(held, CancellationToken(claim.seconds), claim.key)
        except NoCloudAnswer as error:
            _LOG.info("request %d of the queue: %s", waiting.id, error)
            if error.cause in ("policy", "unfit"):
                claim.done()
                continue
            claim.release()
            if error.cause == "away":
                return
            continue
        except EdgeError as error:
            # It waits on, and keeps no other waiting.
            _LOG.warning("request %d of the queue could not be sent: %s", waiting.id, error)
            claim.release()
            continue
        except BaseException:
            claim.release()
            raise
        if reply.cloud is None or not reply.cloud.whole:
            claim.release()
        elif claim.done():
            yield DeferredReply(waiting.id, waiting.at, held.messages, reply)
