"""What a client does with what cannot go to the cloud now."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeAlias

from edgesdk.errors import RequestError
from edgesdk.hybrid.answering import Asked, NotAsked
from edgesdk.hybrid.ask import Ask, Messages
from edgesdk.hybrid.asking import CloudAsker
from edgesdk.hybrid.cloud.clock import Deadline
from edgesdk.hybrid.privacy.policy import Policy, Verdict, strictest
from edgesdk.hybrid.privacy.vault import Vault
from edgesdk.hybrid.reply import HybridReply
from edgesdk.hybrid.waiting.flushing import LateReply, flush
from edgesdk.hybrid.waiting.held import Held, held_of
from edgesdk.hybrid.waiting.queue import Queue

WritesDown: TypeAlias = Callable[[HybridReply, Messages, Verdict, float], None]

_LOG = logging.getLogger("edgesdk.hybrid")


class Later:
    """Keeps requests in a queue, and sends them from there.

    Args:
        queue: None to keep nothing.
        count: tokens of a prompt.
        write_down: hears of each answer, and of when it was asked for: seconds since the epoch.
    """

    def __init__(
        self,
        queue: Queue | None,
        policy: Policy,
        asker: CloudAsker,
        count: Callable[[Messages], int],
        write_down: WritesDown,
    ) -> None:
        self._queue = queue
        self._policy = policy
        self._asker = asker
        self._count = count
        self._write_down = write_down

    def keep(self, error: NotAsked, ask: Ask, verdict: Verdict) -> int | None:
        """Put a request that came to nothing into the queue, if another time may be better; its id
        there. The checks of tools and forms are the caller's, and do not outlive it, so requests
        with them do not wait."""
        if self._queue is None or error.why != "away" or not ask.is_plain:
            return None
        try:
            return self._queue.put(held_of(ask.messages, ask.options, verdict))
        except RequestError as problem:
            _LOG.warning("a request was not kept for later: %s", problem)
            return None

    def flush(self) -> Iterator[LateReply]:
        """See `edgesdk.hybrid.waiting.flushing.flush`."""
        return iter(()) if self._queue is None else flush(self._queue, self._send)

    def _send(self, held: Held, deadline: Deadline, key: str) -> HybridReply:
        """The cloud's answer, under the policy of now or of then, whichever is stricter.

        Sent by two processes, because one died, it is one request with one text to the cloud.
        """
        started = time.time()
        vault = Vault(self._policy.detectors, seed=key)
        ask = Ask(held.messages, held.options, vault, key=key)
        now = self._policy.judge(ask.messages, call=held.call, tags=held.tags, besides=ask.besides)
        verdict = strictest(now, Verdict(held.upload, "the rule when it was asked", now.kinds))
        tokens = self._count(ask.messages)
        asking = self._asker.ask(ask, verdict, prompt_tokens=tokens, deadline=deadline)
        with closing(asking):
            while True:
                try:
                    next(asking)
                except StopIteration as end:
                    asked: Asked = end.value
                    break
        reply = asked.reply("asked again from the queue", None, "")
        self._write_down(reply, ask.messages, verdict, started)
        return reply
