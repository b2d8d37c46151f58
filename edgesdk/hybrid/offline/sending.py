"""Puts requests into the offline queue, and sends them when the cloud is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from edgesdk.errors import EdgeError, RequestError
from edgesdk.hybrid.cloud.spending import Cost
from edgesdk.hybrid.offline.queue import OfflineQueue, QueuedRequest, queued_request
from edgesdk.hybrid.privacy.policy import Policy, UploadVerdict, strictest
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.remote import NoAnswerCause, NoCloudAnswer, RemoteModel
from edgesdk.hybrid.reply import HybridReply
from edgesdk.hybrid.request import HybridRequest, Messages
from edgesdk.hybrid.stream import read_to_end
from edgesdk.request import Encode, Request

RecordsReply: TypeAlias = Callable[[HybridReply, Messages, UploadVerdict, float], None]

_LOG = logging.getLogger("edgesdk.hybrid")


@dataclass(frozen=True)
class DeferredReply:
    """The cloud's reply to a request that had to wait.

    Attributes:
        id: `HybridReply.queued` of the reply that the device gave meanwhile.
        asked_at: seconds since the epoch.
    """

    id: int
    asked_at: float
    messages: list[dict[str, Any]]
    reply: HybridReply


class DeferredRequests:
    """Keeps a client's requests in a queue, and sends them from there.

    Args:
        queue: None to keep nothing.
        count: returns the tokens of a request's prompt.
        record: called with each reply, and with when it was asked for: seconds since the epoch.
    """

    def __init__(
        self,
        queue: OfflineQueue | None,
        policy: Policy,
        remote: RemoteModel,
        encode: Encode,
        count: Callable[[HybridRequest], int],
        record: RecordsReply,
    ) -> None:
        self._queue = queue
        self._policy = policy
        self._remote = remote
        self._encode = encode
        self._count = count
        self._record = record

    def defer(self, cause: NoAnswerCause, request: Request, verdict: UploadVerdict) -> int | None:
        """Put a request that got no whole answer into the queue, and return its id there.

        It is None where another time is no better. The checks of tools and output formats are the
        caller's, and do not outlive it, so requests with them are not queued.
        """
        if self._queue is None or cause != "away" or not request.is_plain:
            return None
        try:
            return self._queue.put(queued_request(request.messages, request.options, verdict))
        except RequestError as problem:
            _LOG.warning("a request was not kept for later: %s", problem)
            return None

    def send_all(self) -> Iterator[DeferredReply]:
        """Send what is in the queue; see `send_queued`."""
        return iter(()) if self._queue is None else send_queued(self._queue, self._send)

    def _send(self, queued: QueuedRequest, seconds: float, key: str) -> HybridReply:
        """Ask the cloud, under the policy of now or of then, whichever is stricter.

        If two processes send the same request, because one died, the cloud gets the same text and
        key twice.
        """
        started = time.time()
        redactor = Redactor(self._policy.detectors, seed=key)
        options = replace(queued.options, deadline=seconds)
        request = Request(queued.messages, options, self._encode)
        hybrid = HybridRequest(request, redactor, key=key)
        now = self._policy.evaluate(
            request.messages, call=queued.call, tags=queued.tags, extras=hybrid.extras
        )
        then = UploadVerdict(queued.upload, "the rule when it was asked", now.kinds)
        verdict = strictest(now, then)
        tokens = self._count(hybrid)
        steps = self._remote.ask(hybrid, verdict, prompt_tokens=tokens)
        reply = replace(read_to_end(steps), reason="asked again from the queue")
        self._record(reply, request.messages, verdict, started)
        return reply


def send_queued(
    queue: OfflineQueue, send: Callable[[QueuedRequest, float, str], HybridReply]
) -> Iterator[DeferredReply]:
    """Send what is in the queue, one request after the other, until the cloud is away.

    A request that cannot be paid now, or whose reply broke off, waits on. One that may not leave
    any more, or that no endpoint takes, is dropped. One that is paid for and answered with nothing
    of use is tried again a few times, and then has failed (`QueueEntry.failed`). A reply is out of
    the queue before it is given out: a process that dies in between has lost it, one that dies
    before has not, and the next one sends the same request with the same key.

    Args:
        send: takes a request, the seconds that it may take, and an idempotency key, which is the
            same each time; raises NoCloudAnswer.

    Raises:
        RequestError: the queue cannot be used.
    """
    reached = 0
    while (claim := queue.claim(after=reached)) is not None:
        entry, request = claim.entry, claim.request
        reached = entry.id
        try:
            reply = send(request, claim.seconds, claim.key)
        except NoCloudAnswer as error:
            _LOG.info("request %d of the queue: %s", entry.id, error)
            if error.cause in ("policy", "unfit"):
                claim.done()
                continue
            if error.cause == "failed" and error.cost != Cost():
                if claim.unanswered(str(error)):
                    _LOG.warning("request %d of the queue failed: %s", entry.id, error)
                continue
            claim.release()
            if error.cause == "away":
                return
            continue
        except EdgeError as error:
            # It waits on, and keeps no other waiting.
            _LOG.warning("request %d of the queue could not be sent: %s", entry.id, error)
            claim.release()
            continue
        except BaseException:
            claim.release()
            raise
        if reply.cloud is None or reply.cloud.broke_off:
            claim.release()
        elif claim.done():
            yield DeferredReply(entry.id, entry.at, request.messages, reply)
