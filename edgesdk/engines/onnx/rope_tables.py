"""The rope tables that a graph takes as inputs, as long as its KV caches need them."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import onnxruntime as ort

from edgesdk.bundle import graph_io
from edgesdk.bundle.rope import rope_tables
from edgesdk.bundle.spec import DecoderSpec, RopeSpec


class RopeTables:
    """Tables that all decode states of a model share, grown with the longest KV cache.

    A model may declare a context of millions of tokens; the tables of those that nobody reaches
    are never computed.

    Args:
        ropes: by name; none where the graph has whole tables of its own.
    """

    def __init__(self, ropes: Mapping[str, RopeSpec] | None = None) -> None:
        self._ropes = dict(ropes or {})
        self._length = 0
        self._inputs: dict[str, ort.OrtValue] = {}
        self._growing = threading.Lock()

    def inputs(self, length: int) -> Mapping[str, ort.OrtValue]:
        """Graph inputs by name, for texts of up to `length` tokens. Keep them while a binding
        refers to them: their memory is theirs."""
        with self._growing:
            if length > self._length:
                self._inputs = {
                    name: ort.OrtValue.ortvalue_from_numpy(table)
                    for rope, spec in self._ropes.items()
                    for name, table in zip(
                        graph_io.rope_names(rope), rope_tables(spec, length), strict=True
                    )
                }
                self._length = length
            return self._inputs


def ropes_of_inputs(session: ort.InferenceSession, spec: DecoderSpec | None) -> dict[str, RopeSpec]:
    """The ropes whose tables the graph takes as inputs, by name. A graph whose tables cannot be
    replaced has whole ones."""
    replaceable = {port.name for port in session.get_overridable_initializers()}
    ropes = {} if spec is None else graph_io.ropes(spec)
    return {
        name: rope for name, rope in ropes.items() if replaceable >= set(graph_io.rope_names(name))
    }
