"""The engine over graphs of fixed shapes, whatever runtime executes them, and how one is made."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgesdk.bundle import static_io
from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.opening import Bundle
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.engines.base import EngineInfo
from edgesdk.engines.npu.decode_state import LoadedStaticModel, StaticDecodeState
from edgesdk.engines.npu.rope_rows import RopeRows
from edgesdk.engines.npu.static_graphs import StaticGraphs
from edgesdk.engines.saved_state import KvIdentity
from edgesdk.errors import DamagedBundle, EngineError, UnsupportedBundle


class StaticEngine:
    """Implements `edgesdk.engines.base.Engine`."""

    def __init__(self, model: LoadedStaticModel, info: EngineInfo) -> None:
        self._model: LoadedStaticModel | None = model
        self.info: Final = info
        self.kv_identity: Final = model.kv_identity

    def new_state(self) -> StaticDecodeState:
        if self._model is None:
            raise EngineError("This engine is closed.", hint="Open the model again.")
        return StaticDecodeState(self._model)

    def close(self) -> None:
        # States that are alive keep the graphs.
        self._model = None


def static_bundle(source: Bundle | Path) -> tuple[Bundle, StaticShape, DecoderSpec]:
    """A bundle that has graphs of fixed shapes, with their sizes and what the decoder is.

    Raises:
        UnsupportedBundle: it has none.
        DamagedBundle: what it says of them cannot be.
        EngineError: `source` is no bundle.
    """
    if not isinstance(source, Bundle):
        raise EngineError(f"{source} is not a bundle.", hint="Export the model to a bundle first.")
    shape, spec = source.manifest.static, source.decoder_spec()
    if shape is None or spec is None:
        raise UnsupportedBundle(
            f"The bundle {source.path} has no graphs of fixed shapes.",
            hint="Export the model again, with the device as --target.",
        )
    for name in ("layers", "kv_heads", "head_size", "vocab_size", "hidden_size"):
        if getattr(spec, name) != getattr(source.manifest.shape, name):
            raise DamagedBundle(
                f"{source.path}: spec.{name} is not shape.{name}.",
                hint="Pull or export the model again.",
            )
    return source, shape, spec


def loaded_model(bundle: Bundle, graphs: StaticGraphs, context: int | None) -> LoadedStaticModel:
    """What the states of an engine over `graphs` share; `bundle` is a `static_bundle`."""
    _, shape, spec = static_bundle(bundle)
    limit = static_io.context_of(spec, shape.window)
    return LoadedStaticModel(
        graphs=graphs,
        spec=spec,
        shape=shape,
        context_length=min(limit, context or limit),
        kv_identity=KvIdentity(
            engine="static",
            model=bundle.sha256,
            layout=f"{shape.dtype}, {spec.layers} layers, {spec.kv_heads} KV heads of"
            f" {spec.head_size}, {shape.window} slots",
        ),
        rope_rows=RopeRows(spec, shape.dtype),
    )


def check_ports(kind: str, found: static_io.Ports, wanted: static_io.Ports, where: str) -> None:
    """Compare the inputs or outputs of an opened graph with those that it should have.

    Checked once, when a model is opened, because a call that binds a wrong buffer fails in the
    middle of an answer.

    Args:
        kind: "input" or "output".
        where: the graph's file.

    Raises:
        DamagedBundle: one is missing, unknown, or of another type or shape.
    """
    for name in sorted(wanted.keys() ^ found.keys()):
        raise _wrong(where, f"{kind} {name!r} is {'missing' if name in wanted else 'unknown'}")
    for name, (dtype, dims) in wanted.items():
        has_dtype, has_dims = found[name]
        if has_dtype != dtype:
            raise _wrong(where, f"{kind} {name!r} is {has_dtype}, not {dtype}")
        if has_dims != dims:
            raise _wrong(where, f"{kind} {name!r} has shape {list(has_dims)}, not {list(dims)}")


def _wrong(where: str, what: str) -> DamagedBundle:
    return DamagedBundle(
        f"The graph {where} is not one that this runtime can drive: {what}.",
        hint="Export the model again with this version of edgesdk.",
    )
