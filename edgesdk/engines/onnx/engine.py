"""Loads an ONNX decoder from a bundle, and checks that its graph is one that can be driven."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from edgesdk.bundle import graph_io
from edgesdk.bundle.adapter import Adapter
from edgesdk.bundle.manifest import ModelShape
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import EngineInfo, LoadSettings
from edgesdk.engines.devices import HOST_PROVIDER, DeviceRecord
from edgesdk.engines.onnx.decode_state import OnnxDecodeState
from edgesdk.engines.onnx.decoder_sessions import DecoderSessions
from edgesdk.engines.onnx.device_access import access_to
from edgesdk.engines.onnx.kv_cache import CacheShape
from edgesdk.engines.onnx.loaded_decoder import DecoderDevice, LoadedDecoder
from edgesdk.engines.onnx.low_rank import check_low_rank_inputs, low_rank_inputs
from edgesdk.engines.onnx.providers import LoadedSession
from edgesdk.engines.onnx.rope_tables import RopeTables, ropes_of_inputs
from edgesdk.engines.onnx.verification_batch import VerificationVerdict
from edgesdk.engines.saved_state import KvIdentity
from edgesdk.errors import DamagedBundle, EngineError

_FLOAT, _INT64, _INT32 = "tensor(float)", "tensor(int64)", "tensor(int32)"

# None stands for a dimension that the caller chooses.
_Port = tuple[str, tuple[int | None, ...]]


class OnnxEngine:
    """Implements `edgesdk.engines.base.AdaptableEngine`. Sequences may run on several threads at
    once."""

    def __init__(
        self,
        decoder: LoadedDecoder,
        info: EngineInfo,
        loaded: LoadedSession,
        sessions: DecoderSessions,
    ) -> None:
        self._decoder: LoadedDecoder | None = decoder
        # A session that adapters share lives as long as an engine of one of them.
        self._loaded: LoadedSession | None = loaded
        self._sessions = sessions
        self.info: Final = info
        self.kv_identity: Final = decoder.kv_identity

    def new_state(self) -> OnnxDecodeState:
        return OnnxDecodeState(self._open_decoder())

    def with_adapter(self, adapter: Adapter) -> OnnxEngine:
        self._open_decoder()
        return _engine(self._sessions, adapter)

    def close(self) -> None:
        self._decoder = self._loaded = None

    def _open_decoder(self) -> LoadedDecoder:
        if self._decoder is None:
            raise EngineError("This engine is closed.", hint="Open the model again.")
        return self._decoder


def open_engine(
    source: Bundle | Path, *, record: DeviceRecord, settings: LoadSettings
) -> OnnxEngine:
    """Load the decoder of an ONNX bundle on the provider of `record`.

    Where that is not the CPU, KV caches lie in the device's memory.

    Raises:
        AdapterMismatch: the adapter of `settings` is for another bundle.
        DamagedBundle: the graph's inputs and outputs are not what the manifest promises.
        DeviceUnavailable: the device is not here any more.
        EngineError: onnxruntime cannot load the model, the provider runs a part of it only, or
            `source` is no bundle.
        MissingExtra: a package that the provider's extra has is not installed.
    """
    if not isinstance(source, Bundle):
        raise EngineError(f"{source} is not a bundle.", hint="Export the model to a bundle first.")
    return _engine(DecoderSessions(source, record, settings), settings.adapter)


def _engine(sessions: DecoderSessions, adapter: Adapter | None) -> OnnxEngine:
    started = time.perf_counter()
    source, record, settings = sessions.source, sessions.record, sessions.settings
    shape = source.manifest.shape
    loaded = sessions.open(adapter)
    session = loaded.session
    identity, low_rank, where = source.sha256, {}, source.role_file("decoder")
    if adapter is not None:
        identity, where = adapter.identity(source.sha256), adapter.role_file("decoder")
        low_rank = dict(low_rank_inputs(adapter))
        check_low_rank_inputs(session, low_rank, adapter.path)
    device = None
    if record.provider is not None and record.provider != HOST_PROVIDER:
        device = DecoderDevice(
            access_to(record.provider),
            loaded.memory,
            VerificationVerdict(identity, settings.threads, kernels=loaded.version),
        )
    inputs = [port for port in session.get_inputs() if port.name not in low_rank]
    check_graph(inputs, session.get_outputs(), shape, where=str(where))
    context_length = min(shape.context_length, settings.context or shape.context_length)
    decoder = LoadedDecoder(
        session=session,
        cache_shape=CacheShape(shape.layers, shape.kv_heads, shape.head_size),
        vocab_size=shape.vocab_size,
        hidden_size=_hidden_size(session),
        context_length=context_length,
        kv_identity=KvIdentity(
            engine="onnx",
            model=identity,
            layout=f"{record.kv_type}, {shape.layers} layers, {shape.kv_heads} KV heads of "
            f"{shape.head_size}",
            adapter=None if adapter is None else adapter.name,
        ),
        # Batches need caches in the host's memory.
        verdict=VerificationVerdict(identity, settings.threads) if device is None else None,
        device=device,
        rope_tables=RopeTables(ropes_of_inputs(session, source.decoder_spec())),
        low_rank=low_rank,
    )
    info = EngineInfo(
        name=f"onnxruntime {ort.__version__}",
        requested_device=settings.requested_device,
        placement=loaded.placement,
        vocab_size=shape.vocab_size,
        context_length=context_length,
        load_seconds=time.perf_counter() - started,
        concurrency=record.concurrency,
        threads=settings.threads,
        # Attention to one token adds in another order than attention to several, and so do matrices
        # in blocks of 64 or 128 for the last of an odd number of tokens.
        prefill_step=2,
        adapter=None if adapter is None else adapter.name,
    )
    return OnnxEngine(decoder, info, loaded, sessions)


def _hidden_size(session: ort.InferenceSession) -> int | None:
    """Columns of the hidden states; None where the graph does not give them, or not their size."""
    shapes = {port.name: port.shape for port in session.get_outputs()}
    size = shapes.get(graph_io.HIDDEN_STATES, [None])[-1]
    return size if isinstance(size, int) else None


def check_graph(inputs: list[Any], outputs: list[Any], shape: ModelShape, *, where: str) -> None:
    """Compare a session's inputs and outputs (onnxruntime `NodeArg`s) with the bundle's shape.

    Checked once, when a model is opened, because a call that binds a wrong buffer fails in the
    middle of an answer.

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
