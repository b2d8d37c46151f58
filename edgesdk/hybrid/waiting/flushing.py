"""Sending what waits in the queue."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from edgesdk.errors import EdgeError
from edgesdk.hybrid.answering import NotAsked
from edgesdk.hybrid.cloud.clock import Deadline
from edgesdk.hybrid.reply import HybridReply
from edgesdk.hybrid.waiting.held import Held
from edgesdk.hybrid.waiting.queue import Queue

_LOG = logging.getLogger("edgesdk.hybrid")


@dataclass(frozen=True)
class LateReply:
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


def flush(queue: Queue, send: Callable[[Held, Deadline, str], HybridReply]) -> Iterator[LateReply]:
    """Send what waits, one request after the other, until all were sent or the cloud is away.

    A request that cannot be paid now, or whose answer broke off, waits on. One that may not leave
    any more, or that no endpoint takes, is dropped. An answer is out of the queue before it is
    given out: a process that dies in between has lost it, one that dies before has not, and the
    next one sends the same request with the same key.

    Args:
        send: is given an idempotency key, too, the same each time; raises NotAsked.

    Raises:
        RequestError: the queue cannot be used.
    """
    reached = 0
    while (claim := queue.claim(after=reached)) is not None:
        waiting, held = claim.waiting, claim.held
        reached = waiting.id
        try:
            reply = send(held, Deadline(claim.seconds), claim.key)
        except NotAsked as error:
            _LOG.info("request %d of the queue: %s", waiting.id, error)
            if error.why in ("policy", "unfit"):
                claim.done()
                continue
            claim.release()
            if error.why == "away":
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
            yield LateReply(waiting.id, waiting.at, held.messages, reply)
