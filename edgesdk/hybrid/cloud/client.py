"""Asks clouds for code that does not run in an event loop."""

from __future__ import annotations

import os
import ssl
import threading
import weakref
from collections.abc import AsyncGenerator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal

from edgesdk.errors import InvalidOption, RequestError
from edgesdk.generation.streaming import Channel
from edgesdk.hybrid.cloud.cloud_reply import CloudEvent, CloudReply
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.failover import Failover, OnBreak
from edgesdk.hybrid.cloud.spending import CallSpending
from edgesdk.system.cancellation import CancellationToken
from edgesdk.system.closing import Closeable
from edgesdk.system.forks import ForkGuard, never_freed_in_forks


class CloudStream(Closeable, Iterator[CloudEvent]):
    """Iterates the events of a reply. Leaving it early, or the last reference to it, ends the
    request."""

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
        """The reply at its end."""
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

    No socket is opened, and no thread started, before the first request. Arguments and errors are
    those of `edgesdk.hybrid.cloud.failover.Failover`; certificates that cannot be read are an
    InvalidOption too.
    """

    def __init__(
        self,
        clouds: Iterable[Cloud],
        *,
        on_break: OnBreak = "restart",
        hedge_after: float | None = None,
    ) -> None:
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._fork_guard = ForkGuard("The hybrid client")
        self._guard = threading.Lock()
        clouds = tuple(clouds)
        # Endpoints with the same rules share connections, and certificates, which load slowly.
        shared: dict[tuple[object, str | None], httpx.AsyncClient] = {}
        for cloud in clouds:
            rules = (cloud.verify, cloud.proxy)
            shared[rules] = shared.get(rules) or _http_client(cloud)
        self._https = tuple(shared[cloud.verify, cloud.proxy] for cloud in clouds)
        self._failover = Failover(clouds, self._https, on_break, hedge_after)

    def stream(
        self,
        body: dict[str, Any],
        *,
        cancellation: CancellationToken | None = None,
        spending: CallSpending | None = None,
        on_break: OnBreak | None = None,
        key: str | None = None,
        fallback: bool = False,
    ) -> CloudStream:
        """Start a reply; arguments and errors are those of `Failover.reply`.

        Its errors come from the iteration. A fork of the process that made the client gets a
        RequestError.
        """
        portal = self._started()
        events = self._failover.reply(
            body, cancellation or CancellationToken(), spending, on_break, key, fallback=fallback
        )
        return CloudStream(portal, events)

    def completion(
        self,
        body: dict[str, Any],
        *,
        cancellation: CancellationToken | None = None,
        spending: CallSpending | None = None,
    ) -> dict[str, Any]:
        """Return one text completion, which is not streamed, as the endpoint's JSON.

        Arguments and errors are those of `Failover.completion`. It tells what a chat does not: the
        log-probabilities of a text that is given.
        """
        return self._started().call(
            self._failover.completion, body, cancellation or CancellationToken(), spending
        )

    def close(self) -> None:
        """End all requests and free the connections; in a fork they are the parent's."""
        if self._fork_guard.crossed:
            return
        if self._portal is not None:
            for http in set(self._https):
                self._portal.call(http.aclose)
        self._stack.close()
        self._portal = None

    def _started(self) -> BlockingPortal:
        """The event loop's portal; it is started when first needed."""
        self._fork_guard.check()
        with self._guard:
            if self._portal is None:
                self._portal = self._stack.enter_context(start_blocking_portal())
                never_freed_in_forks(self._stack)
                # Later, when modules are torn down, it would wait for a thread that is frozen.
                weakref.finalize(self, _end_in_process, self._stack, os.getpid())
            return self._portal


def _end_in_process(stack: ExitStack, process: int) -> None:
    """Close what a client left open at the process's exit; a fork has no such thread."""
    if os.getpid() == process:
        stack.close()


def _http_client(cloud: Cloud) -> httpx.AsyncClient:
    verify = cloud.verify
    try:
        if verify is True:
            places = [os.environ.get(name) or None for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")]
            if any(places):
                verify = ssl.create_default_context(cafile=places[0], capath=places[1])
        elif isinstance(verify, str | Path):
            path = Path(verify)
            verify = ssl.create_default_context(
                cafile=None if path.is_dir() else str(path),
                capath=str(path) if path.is_dir() else None,
            )
        # Proxies and .netrc of the environment must not redirect what the app addressed.
        return httpx.AsyncClient(
            follow_redirects=False, verify=verify, proxy=cloud.proxy, trust_env=False
        )
    except (OSError, ValueError) as error:
        raise InvalidOption(
            f"The certificates to trust for {cloud.name} cannot be read: {error}.",
            hint="They are those of Cloud(verify=...), SSL_CERT_FILE and SSL_CERT_DIR.",
        ) from None


async def _copy(events: AsyncGenerator[CloudEvent, None], channel: Channel[CloudEvent]) -> None:
    async with aclosing(events):
        async for event in events:
            channel.put(event)
