"""Putting requests into the queue, and sending what waits there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from edgesdk.errors import EdgeError, RequestError
from edgesdk.hybrid.asking import Asked, CloudAsker, NotAsked
from edgesdk.hybrid.cloud.clock import Deadline
from edgesdk.hybrid.privacy.policy import Policy, Verdict, strictest
from edgesdk.hybrid.privacy.vault import Vault
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


def keep(queue: Queue | None, error: NotAsked, held: Held) -> int | None:
    """Put a request that came to nothing into the queue, if another time may be better; its id
    there."""
    if queue is None or error.why != "away":
        return None
    try:
        return queue.put(held)
    except RequestError as problem:
        _LOG.warning("a request was not kept for later: %s", problem)
        return None


def flush(queue: Queue, send: Callable[[Held, Deadline], HybridReply]) -> Iterator[LateReply]:
    """Send what waits, one request after the other, until all were sent or the cloud is away.

    A request that cannot be paid now, or whose answer broke off, waits on. One that may not leave
    any more, or that no endpoint takes, is dropped. An answer is out of the queue before it is
    given out: a process that dies in between has lost it, one that dies before has not.

    Args:
        send: raises NotAsked.

    Raises:
        RequestError: the queue cannot be used.
    """
    reached = 0
    while (claim := queue.claim(after=reached)) is not None:
        waiting, held = claim.waiting, claim.held
        reached = waiting.id
        try:
            reply = send(held, Deadline(claim.seconds))
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


def ask_late(
    held: Held, policy: Policy, asker: CloudAsker, prompt_tokens: int, deadline: Deadline
) -> tuple[HybridReply, Verdict]:
    """The cloud's answer, under the policy of now or of then, whichever is stricter.

    Raises:
        NotAsked: see `CloudAsker.ask`.
    """
    now = policy.judge(held.messages, call=held.call, tags=held.tags)
    verdict = strictest(now, Verdict(held.upload, "the rule when it was asked", now.kinds))
    asking = asker.ask(
        held.messages,
        held.options,
        verdict,
        Vault(policy.detectors),
        prompt_tokens=prompt_tokens,
        deadline=deadline,
    )
    with closing(asking):
        while True:
            try:
                next(asking)
            except StopIteration as end:
                asked: Asked = end.value
                break
    text, reason = asked.answer.text, "asked again from the queue"
    return HybridReply(text, "cloud", reason, cloud=asked.answer, cost=asked.cost), verdict
