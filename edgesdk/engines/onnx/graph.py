"""Whether a graph has the inputs and outputs that `edgesdk.bundle.graph_io` promises.

Checked once, when a model is opened, because a call that binds a wrong buffer fails in the middle
of an answer.
"""

from __future__ import annotations

from typing import Any

from edgesdk.bundle import graph_io
from edgesdk.bundle.manifest import ModelShape
from edgesdk.errors import DamagedBundle

_FLOAT, _INT64, _INT32 = "tensor(float)", "tensor(int64)", "tensor(int32)"

# None stands for a dimension that the caller chooses.
_Port = tuple[str, tuple[int | None, ...]]


def check_graph(inputs: list[Any], outputs: list[Any], shape: ModelShape, *, where: str) -> None:
    """Compare a session's inputs and outputs (onnxruntime `NodeArg`s) with the bundle's shape.

    Raises:
        DamagedBundle: one is missing, unknown, or of another type or shape.
    """
    cache: _Port = (_FLOAT, (None, shape.kv_heads, None, shape.head_size))
    wanted_inputs: dict[str, _Port] = {
        graph_io.INPUT_IDS: (_INT64, (None, None)),
        graph_io.LOGITS_FROM: (_INT64, (1,)),
        graph_io.SEQLENS_K: (_INT32, (None,)),
        graph_io.TOTAL_SEQUENCE_LENGTH: (_INT32, ()),
    }
    wanted_outputs: dict[str, _Port] = {graph_io.LOGITS: (_FLOAT, (None, None, shape.vocab_size))}
    if any(port.name == graph_io.HIDDEN_STATES for port in outputs):
        wanted_outputs[graph_io.HIDDEN_STATES] = (_FLOAT, (None, None, None))
    for layer in range(shape.layers):
        wanted_inputs.update(dict.fromkeys(graph_io.past_names(layer), cache))
        wanted_outputs.update(dict.fromkeys(graph_io.present_names(layer), cache))
    _compare("input", inputs, wanted_inputs, where)
    _compare("output", outputs, wanted_outputs, where)


def _compare(kind: str, found: list[Any], wanted: dict[str, _Port], where: str) -> None:
    by_name = {port.name: port for port in found}
    for name in sorted(wanted.keys() ^ by_name.keys()):
        raise _wrong(where, f"{kind} {name!r} is {'missing' if name in wanted else 'unknown'}")
    for name, (element, dims) in wanted.items():
        port = by_name[name]
        if port.type != element:
            raise _wrong(where, f"{kind} {name!r} is {port.type}, not {element}")
        fits = len(port.shape) == len(dims) and all(
            want is None or not isinstance(have, int) or have == want
            for have, want in zip(port.shape, dims, strict=True)
        )
        if not fits:
            raise _wrong(where, f"{kind} {name!r} has shape {port.shape}, not {list(dims)}")


def _wrong(where: str, what: str) -> DamagedBundle:
    return DamagedBundle(
        f"The graph {where} is not a decoder that this runtime can drive: {what}.",
        hint="Export the model again with this version of edgesdk.",
    )
