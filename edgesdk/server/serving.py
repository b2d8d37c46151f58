"""Runs a server process: it listens, says where, gives memory back, and drains when told so."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from edgesdk.errors import InvalidOption
from edgesdk.server.app import create_app
from edgesdk.server.hybrid_routing import HybridClients
from edgesdk.server.model_source import ModelSource
from edgesdk.server.service import Service
from edgesdk.server.settings import ServerSettings

# Beyond the grace time, for the engine calls that are under way when it ends.
_EXTRA_SECONDS = 10.0
# How long a connection may idle. Clients drop theirs after 5 seconds by default; a server that does
# so too, as uvicorn would, now and then hangs up on a request that is just coming.
_KEEP_ALIVE_SECONDS = 75


def serve(
    source: ModelSource,
    settings: ServerSettings,
    *,
    on_start: Callable[[str], None],
    hybrid: HybridClients | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; then finish what runs and return.

    Args:
        on_start: called with the server's URL when it takes requests.
        hybrid: the clients of the clouds that may answer chat requests; None for no cloud.

    Raises:
        InvalidOption: the address cannot be listened at.
    """
    listener = listen(settings.host, settings.port)
    service = Service(source, settings)
    with _signals_ignored_afterwards(), listener:
        asyncio.run(DrainingServer(service, listener, on_start, hybrid).serve(sockets=[listener]))


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address, family=family, backlog=128)
    except OSError as error:
        raise InvalidOption(
            f"Cannot listen at {host}:{port}: {error.strerror or error}.",
            hint="Choose another --port, or 0 for any that is free.",
        ) from None


class DrainingServer(uvicorn.Server):
    """uvicorn, with a way to end that the service takes part in."""

    def __init__(
        self,
        service: Service,
        listener: socket.socket,
        on_start: Callable[[str], None],
        hybrid: HybridClients | None = None,
    ) -> None:
        config = uvicorn.Config(
            create_app(service, hybrid),
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(service.settings.grace + _EXTRA_SECONDS),
        )
        super().__init__(config)
        self._service = service
        self._url = url_of(listener)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start(self._url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        draining = asyncio.create_task(self._service.drain())
        await super().shutdown(sockets)
        await draining


def url_of(listener: socket.socket) -> str:
    """The URL of the server behind a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _signals_ignored_afterwards() -> Iterator[None]:
    """uvicorn sends itself the signals again that it ended by; here they have done their work."""

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, ignore) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Of <malloc.h>.
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_MMAP_BYTES = 2**18
_MAX_ARENAS = 2


def keep_memory_flat() -> bool:
    """Make the allocator give blocks of 256 KiB and more back to the system when they are freed,
    and have all threads share two heaps.

    glibc raises its own limit with every such block that is freed, up to 32 MB, and then keeps KV
    caches and logits of conversations that are over in its heaps, of which it gives nearly every
    thread one: memory creeps up for hours. This is a setting of the whole process, so it is for
    programs, not for libraries.

    Returns:
        Whether this system's allocator has these settings.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)) and bool(
        mallopt(_M_ARENA_MAX, _MAX_ARENAS)
    )
