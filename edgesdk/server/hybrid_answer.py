"""Makes one hybrid answer in a worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from time import perf_counter

from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.privacy.policy import UploadVerdict
from edgesdk.hybrid.reply import HybridEvent, HybridReply
from edgesdk.hybrid.request import HybridRequest, Prefer
from edgesdk.server.metrics import Metrics
from edgesdk.server.model_pool import LoadedModel
from edgesdk.server.service import contained_error

# A deadline must lie ahead; what is due now ends at once.
_MIN_DEADLINE = 1e-3


@dataclass(frozen=True)
class PreparedHybridAnswer:
    """What is asked, whom, and what may happen to it. The deadline is of the whole request."""

    client: HybridClient
    ask: HybridRequest
    verdict: UploadVerdict


class HybridAnswer:
    """Implements `Work`.

    Args:
        started: `time.perf_counter()` when the request came.

    Attributes:
        others: whether a cloud might answer.
        reply: the answer; None until it is there, and where it was cancelled.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prepared: PreparedHybridAnswer,
        prefer: Prefer | None,
        started: float,
    ) -> None:
        self.loaded = loaded
        self.others = prepared.client.may_ask(prepared.verdict, prefer)
        self.reply: HybridReply | None = None
        self._prepared = prepared
        self._prefer = prefer
        self._started = started
        self._error: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[HybridEvent | None] = asyncio.Queue()

    def cancel(self) -> None:
        self._prepared.ask.cancel.set()

    async def events(self) -> AsyncGenerator[HybridEvent, None]:
        """The events as they come; may be iterated once. Raises what the worker did."""
        while (event := await self._arrived.get()) is not None:
            yield event
        if self._error is not None:
            raise self._error

    def compute(self) -> None:
        try:
            client, ask, verdict = self._prepared.client, self._prepared.ask, self._prepared.verdict
            options = ask.options
            if options.deadline is not None:
                left = options.deadline - (perf_counter() - self._started)
                options = replace(options, deadline=max(left, _MIN_DEADLINE))
            ask = replace(ask, options=options)
            with client.answer(ask, verdict, self._prefer) as stream:
                for event in stream:
                    self._loop.call_soon_threadsafe(self._arrived.put_nowait, event)
            if not ask.cancel.is_set():
                self.reply = stream.reply
        except BaseException as error:
            self._error = contained_error(error)

    def over(self, metrics: Metrics) -> None:
        name = self.loaded.model_info.name
        if self.reply is None:
            metrics.count_failure(name)
        else:
            metrics.count_route(name, self.reply.route, self.reply.cost.money)
        self._arrived.put_nowait(None)
