"""What makes a server hybrid: who else may answer, and within which rules."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

from edgesdk.closing import Closes
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.model import Model

# What a stream keeps back, so that a client which only appends text never shows a withdrawn draft.
# "decision": the device's pieces, until it is sure that they are the answer. "answer": all pieces,
# until the answer is whole. "nothing".
Hold = Literal["decision", "answer", "nothing"]


class HybridSetup(Closes):
    """One hybrid client for each model that a server has loaded.

    Args:
        make: makes the client of a model.
        policy: of all clients; its default is the loosest rule that a request may ask for.
        hold: what streams keep back.
    """

    def __init__(
        self, make: Callable[[Model], HybridClient], policy: Policy, *, hold: Hold = "decision"
    ) -> None:
        self.policy = policy
        self.hold: Hold = hold
        self._make = make
        self._clients: dict[str, tuple[Model, HybridClient]] = {}
        self._guard = threading.Lock()

    def client(self, name: str, model: Model) -> HybridClient:
        """The client of a loaded model.

        Args:
            name: that it is served by.
        """
        with self._guard:
            known = self._clients.get(name)
            if known is not None and known[0] is model:
                return known[1]
            made = self._make(model)
            self._clients[name] = (model, made)
        if known is not None:
            # Of a model that was unloaded since: nobody asks it any more.
            known[1].close()
        return made

    def close(self) -> None:
        with self._guard:
            clients, self._clients = self._clients, {}
        for _, client in clients.values():
            client.close()
