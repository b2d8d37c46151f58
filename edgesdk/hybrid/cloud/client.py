"""Asks clouds for code that does not run in an event loop."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, aclosing
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal

from edgesdk.errors import RequestError
from edgesdk.generation.streaming import Channel
from edgesdk.hybrid.cloud.cloud_reply import CloudEvent, CloudReply
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.failover import Failover, OnBreak
from edgesdk.hybrid.cloud.spending import CallSpending
from edgesdk.system.cancellation import CancellationToken
from edgesdk.system.closing import Closeable


class CloudStream(Closeable, Iterator[CloudEvent]):
    """Iterates the events of a reply.

    Leaving it early, or the last reference to it, ends the request.
    """

    def __init__(self, portal: BlockingPortal, events: AsyncGenerator[CloudEvent, None]) -> None:
        self._channel: Channel[CloudEvent] = Channel()
        self._reply: CloudReply | None = None
        self._work: Future[None] = portal.start_task_soon(_copy, events, self._channel)
        # Also where the work was cancelled before it began.
        channel = self._channel
        self._work.add_done_callback(
            lambda work: channel.end(None if work.cancelled() else work.exception())
        )

    def __next__(self) -> CloudEvent:
        if self._work.cancelled():
            raise StopIteration
        event = next(self._channel)
        if isinstance(event, CloudReply):
            self._reply = event
        return event

    @property
    def reply(self) -> CloudReply:
        """The reply at its end.

        Raises:
            RequestError: it has not ended.
        """
        if self._reply is None:
            raise RequestError("The reply was not read to its end.", hint="Iterate it first.")
        return self._reply

    def close(self) -> None:
        """End the request, from any thread; harmless where it has ended."""
        self._work.cancel()

    def __del__(self) -> None:
        self.close()


class CloudClient(Closeable):
    """Asks cloud models; several threads may use it.

    No socket is opened, and no thread started, before the first request.

    Args:
        clouds: in order of preference; the next is asked where one fails.
        on_break: what becomes of a reply that breaks off after its first token: "restart" begins
            it again elsewhere, "incomplete" ends it with what there is.
        hedge_after: seconds without a first token after which the same request also goes to the
            next endpoint, and the first token decides; None for never. It costs what it brings:
            an endpoint may charge for the reply that nobody reads.
        verify: certificates to trust, as httpx takes them; True for those of the system.
    """

    def __init__(
        self,
        clouds: Iterable[Cloud],
        *,
        on_break: OnBreak = "restart",
        hedge_after: float | None = None,
        verify: Any = True,
    ) -> None:
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._guard = threading.Lock()
        # Proxies and .netrc of the environment must not redirect what the app addressed.
        self._http = httpx.AsyncClient(follow_redirects=False, verify=verify, trust_env=False)
        self._failover = Failover(tuple(clouds), self._http, on_break, hedge_after)

    def stream(
        self,
        body: dict[str, Any],
        *,
        cancellation: CancellationToken | None = None,
        spending: CallSpending | None = None,
        on_break: OnBreak | None = None,
        key: str | None = None,
    ) -> CloudStream:
        """Start a reply.

        Args:
            body: a chat completion request, without model and streaming.
            cancellation: its deadline holds for all attempts together.
            spending: where each attempt is reserved; None for nowhere.
            on_break: for this reply, in place of the client's.
            key: the idempotency key of all attempts; None for a new one. An endpoint that heeds it
                answers a request that is sent again by another process as it did the first.

        Raises:
            CloudError, BudgetExceeded, DeadlineExceeded: from the iteration; see `Failover.reply`.
        """
        with self._guard:
            if self._portal is None:
                self._portal = self._stack.enter_context(start_blocking_portal())
            portal = self._portal
        events = self._failover.reply(
            body, cancellation or CancellationToken(), spending, on_break, key
        )
        return CloudStream(portal, events)

    def close(self) -> None:
        """End all requests and free the connections."""
        if self._portal is not None:
            self._portal.call(self._http.aclose)
        self._stack.close()
        self._portal = None


async def _copy(events: AsyncGenerator[CloudEvent, None], channel: Channel[CloudEvent]) -> None:
    async with aclosing(events):
        async for event in events:
            channel.put(event)
