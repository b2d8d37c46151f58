"""An ONNX decoder from a bundle, on the CPU."""

from __future__ import annotations

import time
from pathlib import Path

import onnxruntime as ort

from edgesdk.bundle import graph_io
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import EngineInfo
from edgesdk.engines.onnx.apart import writes_first
from edgesdk.engines.onnx.cache import CacheShape
from edgesdk.engines.onnx.graph import check_graph
from edgesdk.engines.onnx.sequence import LoadedDecoder, OnnxSequence
from edgesdk.engines.saved import KvOrigin
from edgesdk.errors import EngineError

# Calls at once: onnxruntime's threads leave gaps between operators, which other calls fill.
_CONCURRENCY = 4


class OnnxEngine:
    """Implements `edgesdk.engines.base.Engine`. Sequences may run on several threads at once."""

    def __init__(self, decoder: LoadedDecoder, info: EngineInfo) -> None:
        self._decoder: LoadedDecoder | None = decoder
        self._info = info
        self._origin = decoder.origin

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def origin(self) -> KvOrigin:
        return self._origin

    def sequence(self) -> OnnxSequence:
        if self._decoder is None:
            raise EngineError("This engine is closed.", hint="Open the model again.")
        return OnnxSequence(self._decoder)

    def close(self) -> None:
        self._decoder = None


def open_engine(
    source: Bundle | Path, *, device_asked: str, threads: int, context: int | None
) -> OnnxEngine:
    """Load the decoder of an ONNX bundle.

    Raises:
        DamagedBundle: the graph's inputs and outputs are not what the manifest promises.
        EngineError: onnxruntime cannot load the model, or `source` is no bundle.
    """
    if not isinstance(source, Bundle):
        raise EngineError(f"{source} is not a bundle.", hint="Export the model to a bundle first.")
    started = time.perf_counter()
    shape = source.manifest.shape
    path = source.file(source.manifest.model_file)
    session = _session(path, threads)
    check_graph(session.get_inputs(), session.get_outputs(), shape, where=str(path))
    context_length = min(shape.context_length, context or shape.context_length)
    decoder = LoadedDecoder(
        session=session,
        cache_shape=CacheShape(shape.layers, shape.kv_heads, shape.head_size),
        vocab_size=shape.vocab_size,
        hidden_size=_hidden_size(session),
        context_length=context_length,
        origin=KvOrigin(
            engine="onnx",
            model=source.sha256,
            layout=f"float32, {shape.layers} layers, {shape.kv_heads} KV heads of "
            f"{shape.head_size}",
        ),
        apart=writes_first(source.manifest.spec or {}),
    )
    info = EngineInfo(
        name=f"onnxruntime {ort.__version__}",
        device_asked=device_asked,
        device="cpu",
        vocab_size=shape.vocab_size,
        context_length=context_length,
        load_seconds=time.perf_counter() - started,
        concurrency=_CONCURRENCY,
        threads=threads,
    )
    return OnnxEngine(decoder, info)


def _session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Failures come back as exceptions; onnxruntime would also print them.
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    # onnxruntime's exceptions have no common base.
    except Exception as error:
        raise EngineError(
            f"onnxruntime cannot load {path}: {error}", hint="Check it with: edgesdk verify"
        ) from error


def _hidden_size(session: ort.InferenceSession) -> int | None:
    """Columns of the hidden states; None where the graph does not give them, or not their size."""
    shapes = {port.name: port.shape for port in session.get_outputs()}
    size = shapes.get(graph_io.HIDDEN_STATES, [None])[-1]
    return size if isinstance(size, int) else None
