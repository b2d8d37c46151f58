"""Decodes one token sequence with graphs of fixed shapes.

The host owns everything: a call of a graph reads the KV window and gives the keys and values of its
own tokens, which are then put into the window. So a rewind is a smaller number, and a fork a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from edgesdk.bundle import graph_io, static_io
from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.engines.base import (
    HiddenStates,
    Logits,
    Rows,
    checked_extension,
    checked_ids,
    checked_length,
    chunks,
)
from edgesdk.engines.npu.kv_window import Floats, KvWindow, fill_mask
from edgesdk.engines.npu.rope_rows import RopeRows
from edgesdk.engines.npu.static_graphs import Array, BoundGraph, GraphName, StaticGraphs
from edgesdk.engines.saved_state import (
    KvIdentity,
    StateMetadata,
    read_saved_state,
    write_saved_state,
)
from edgesdk.errors import EngineError, RequestError
from edgesdk.system.cancellation import CancellationToken, Cancelled
from edgesdk.system.forks import ForkGuard


@dataclass(frozen=True)
class LoadedStaticModel:
    """What the states of one engine share."""

    graphs: StaticGraphs
    spec: DecoderSpec
    shape: StaticShape
    context_length: int
    kv_identity: KvIdentity
    rope_rows: RopeRows
    fork_guard: ForkGuard = field(default_factory=lambda: ForkGuard("The model", EngineError))


class StaticDecodeState:
    """Implements `edgesdk.engines.base.DecodeState`.

    Prompts go through the prefill graph, in chunks that end at multiples of its tokens; single
    tokens through the decode graph. A call can be cancelled between two runs of a graph.
    """

    def __init__(self, model: LoadedStaticModel) -> None:
        self._model = model
        self._tokens: list[int] = []
        self._window: KvWindow | None = KvWindow(model.spec, model.shape)
        # How many of the tokens have keys and values in the window. Fewer after a rewind to a
        # place whose surroundings have been written over.
        self._computed = 0
        # Whether their keys have the rope of long texts; see `RopeRows.is_long`.
        self._long = False
        self._calls: dict[GraphName, _Call] = {}
        self._latest: HiddenStates | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self._tokens)

    @property
    def hidden_states(self) -> HiddenStates | None:
        return self._latest

    def extend(
        self,
        tokens: npt.ArrayLike,
        *,
        logits: Rows = "last",
        cancellation: CancellationToken | None = None,
    ) -> Logits:
        self._open_window()
        model, held = self._model, len(self._tokens)
        ids, rows = checked_extension(
            tokens,
            logits,
            held=held,
            vocab_size=model.spec.vocab_size,
            context_length=model.context_length,
        )
        if logits == "each":
            found, hidden = self._compute_each(ids, cancellation)
        else:
            found, hidden = self._compute(self._tokens + ids, rows, cancellation)
        self._tokens += ids
        self._latest = hidden
        return found

    def rewind(self, length: int) -> None:
        window = self._open_window()
        length = checked_length(length, held=len(self._tokens))
        del self._tokens[length:]
        self._computed = min(self._computed, length)
        if not window.holds(self._computed):
            self._computed = 0

    def fork(self) -> StaticDecodeState:
        window = self._open_window()
        twin = StaticDecodeState(self._model)
        twin._tokens = list(self._tokens)
        twin._computed, twin._long = self._computed, self._long
        twin._open_window().copy_from(window)
        return twin

    def save(self, path: Path, metadata: StateMetadata | None = None) -> None:
        window = self._open_window()
        length = len(self._tokens)
        if window.end > max(length, window.size):
            # Some slots hold tokens that were forgotten in the place of some that were not.
            self._computed = 0
        if self._computed < length or self._long != self._model.rope_rows.is_long(length):
            self._compute(self._tokens, 1, None)
        payload = window.dump(length)
        write_saved_state(path, self._model.kv_identity, self._tokens, payload, metadata)

    def restore(self, path: Path) -> dict[str, JsonValue]:
        self._open_window()
        model = self._model
        tokens, metadata, payload = read_saved_state(path, model.kv_identity)
        window = KvWindow(model.spec, model.shape)
        if payload.size != window.bytes_of(len(tokens)):
            raise RequestError(
                f"{path} has {payload.size} bytes of KV cache for {len(tokens)} tokens."
            )
        if tokens:
            checked_ids(
                tokens,
                held=0,
                vocab_size=model.spec.vocab_size,
                context_length=model.context_length,
            )
        window.load(payload, len(tokens))
        # Graphs are bound to the window that is there, so its numbers change and not the window.
        self._open_window().copy_from(window)
        self._tokens = tokens
        self._computed = len(tokens)
        self._long = model.rope_rows.is_long(len(tokens))
        return metadata

    def close(self) -> None:
        self._window = None
        self._tokens = []
        self._calls.clear()

    def _compute_each(
        self, ids: list[int], cancellation: CancellationToken | None
    ) -> tuple[Logits, HiddenStates]:
        """One run of the decode graph for each token."""
        held = len(self._tokens)
        tokens = list(self._tokens)
        found = []
        try:
            for token in ids:
                tokens.append(token)
                found.append(self._compute(tokens, 1, cancellation))
        except BaseException:
            self._computed = min(self._computed, held)
            if not self._open_window().holds(self._computed):
                self._computed = 0
            raise
        logits, hidden = zip(*found, strict=True)
        return np.concatenate(logits), np.concatenate(hidden)

    def _compute(
        self, tokens: list[int], rows: int, cancellation: CancellationToken | None
    ) -> tuple[Logits, HiddenStates]:
        """Logits and hidden states of the last `rows` of `tokens`, of which the first have been
        computed. What was computed before is still there where this fails."""
        window, total = self._open_window(), len(tokens)
        is_long = self._model.rope_rows.is_long(total)
        if is_long != self._long:
            self._computed, self._long = 0, is_long
        before = self._computed
        if before == 0:
            window.end = 0
        logits: list[Logits] = []
        hidden: list[HiddenStates] = []
        try:
            for start, end in self._chunks(before, total, rows):
                if cancellation is not None:
                    cancellation.raise_if_cancelled()
                size = end - start
                call = self._call("decode" if size == 1 else "prefill")
                call.run(tokens[start:end], start, total)
                window.write(start, call.new[:, :, -size:])
                wanted = min(size, end - (total - rows))
                if wanted > 0:
                    logits.append(call.logits[-wanted:].astype(np.float32))
                    hidden.append(call.hidden[-wanted:].astype(np.float32))
        except BaseException as error:
            self._computed = before if window.holds(before) else 0
            if isinstance(error, (Cancelled, EngineError)) or not isinstance(error, Exception):
                raise
            # A runtime's exceptions have no common base.
            raise EngineError(
                f"The graphs failed on {total - before} tokens after {before}: {error}"
            ) from error
        self._computed = total
        return np.concatenate(logits), np.concatenate(hidden)

    def _chunks(self, start: int, total: int, rows: int) -> Iterator[tuple[int, int]]:
        """Which tokens each run of a graph has: those without logits in whole chunks, those with
        logits as many at once as the graph gives rows for."""
        shape = self._model.shape
        if rows == 1:
            yield from chunks(start, total, shape.prefill_tokens)
            return
        yield from chunks(start, total - rows, shape.prefill_tokens)
        yield from chunks(total - rows, total, shape.logits_rows)

    def _call(self, graph: GraphName) -> _Call:
        if graph not in self._calls:
            self._calls[graph] = _Call(self._model, graph, self._open_window())
        return self._calls[graph]

    def _open_window(self) -> KvWindow:
        self._model.fork_guard.check()
        if self._window is None:
            raise EngineError("This decode state is closed.", hint="Ask the engine for a new one.")
        return self._window


class _Call:
    """The arrays of one graph of one state, and what runs the graph over them.

    Attributes:
        logits, hidden: F [rows, vocab] and F [rows, hidden] of the latest run.
        new: F [2 * layers, kv_heads, tokens, head_size], its keys and values.
    """

    def __init__(self, model: LoadedStaticModel, graph: GraphName, window: KvWindow) -> None:
        spec, shape = model.spec, model.shape
        count = 1 if graph == "decode" else shape.prefill_tokens
        self._model = model
        self._inputs = _arrays(
            static_io.input_ports(spec, shape, count), static_io.past_names, window.slots
        )
        self.new = np.empty((2 * spec.layers, spec.kv_heads, count, spec.head_size), shape.dtype)
        outputs = _arrays(static_io.output_ports(spec, shape, count), static_io.new_names, self.new)
        self.logits = outputs[static_io.LOGITS][0]
        self.hidden = outputs[static_io.HIDDEN_STATES][0]
        self._ids = self._inputs[static_io.INPUT_IDS][0]
        self._run: BoundGraph = model.graphs.bind(graph, self._inputs, outputs)

    def run(self, ids: list[int], start: int, total: int) -> None:
        """Run over tokens whose first has position `start`, in a text of `total` tokens."""
        spec, shape, count = self._model.spec, self._model.shape, len(ids)
        first = len(self._ids) - count
        self._ids[first:] = ids
        for window in set(spec.windows):
            fill_mask(
                self._inputs[static_io.mask_name(window)][0, 0],
                start,
                count,
                size=shape.window,
                window=window,
                hidden=shape.mask_value,
            )
        for rope in graph_io.ropes(spec):
            rows = self._model.rope_rows.rows(rope, start, start + count, total=total)
            for name, table in zip(graph_io.rope_names(rope), rows, strict=True):
                self._inputs[name][0, 0, first:] = table
        self._run()


def _arrays(
    ports: static_io.Ports, cache_names: Callable[[int], tuple[str, str]], caches: Floats
) -> dict[str, Array]:
    """Arrays of zeros for `ports`, but for keys and values: these are the parts of `caches` [2 *
    layers, ...]."""
    arrays: dict[str, Array] = {}
    for layer in range(len(caches) // 2):
        for part, name in enumerate(cache_names(layer)):
            arrays[name] = caches[2 * layer + part][None]
    zeros = ports.keys() - arrays.keys()
    return arrays | {name: np.zeros(ports[name][1], ports[name][0]) for name in zeros}
