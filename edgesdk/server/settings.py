"""The settings of a server: one frozen value, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edgesdk.errors import InvalidOption
from edgesdk.system.checks import is_loopback

ANY_ORIGIN = "*"


@dataclass(frozen=True)
class ServerSettings:
    """Says where a server listens, who may use it, and how much work it accepts.

    Attributes:
        host: an address or name of this machine.
        port: 0 for any that is free.
        api_key: clients must send it; only a loopback address needs none.
        origins: web origins, such as "http://localhost:3000", whose pages may use the server
            besides its own pages; "*" is all.
        max_models: most models that are loaded at the same time.
        memory_limit: most bytes that all loaded models may need together, when the conversations
            of each fill their contexts; None for no limit.
        idle_seconds: a model is unloaded when nobody used it for so long.
        parallel: most answers that one model gives at the same time.
        max_idle_states: idle KV caches that a model keeps for the next turns of its conversations.
        queue: most requests that wait for their turn.
        deadline: seconds that a request may take, its wait included.
        grace: seconds in which running answers may end when the server stops.
        body_limit: most bytes of a request.

    Raises:
        InvalidOption: a value is out of its range, or the address is open to others and there is
            no key.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = field(default=None, repr=False)
    origins: tuple[str, ...] = ()
    max_models: int = 2
    memory_limit: int | None = None
    idle_seconds: float = 300.0
    parallel: int = 4
    max_idle_states: int = 4
    queue: int = 32
    deadline: float = 600.0
    grace: float = 30.0
    body_limit: int = 4 * 2**20

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InvalidOption(f"port must be from 0 to 65535, not {self.port}.")
        for name in ("max_models", "parallel", "queue", "body_limit"):
            if getattr(self, name) < 1:
                raise InvalidOption(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("max_idle_states", "idle_seconds", "grace"):
            if getattr(self, name) < 0:
                raise InvalidOption(f"{name} must not be negative.")
        if not 0 < self.deadline < math.inf:
            raise InvalidOption(f"deadline must be above 0 seconds, not {self.deadline}.")
        if self.api_key is not None and not self.api_key.strip():
            raise InvalidOption("The API key is blank.", hint="Give one, or leave it out.")
        if self.api_key is None and not self.is_loopback:
            raise InvalidOption(
                f"{self.host} can be reached from other machines, so an API key is needed.",
                hint="Set EDGESDK_API_KEY, or listen on 127.0.0.1.",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach `host`."""
        return is_loopback(self.host)
