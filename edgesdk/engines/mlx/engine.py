"""Loads the weights of an ONNX bundle on MLX."""

from __future__ import annotations

import importlib.metadata
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import mlx.core as mx

from edgesdk.bundle.opening import Bundle
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.engines.base import EngineInfo, LoadSettings, Placement
from edgesdk.engines.devices import DeviceRecord
from edgesdk.engines.mlx.decode_state import LoadedMlxDecoder, MlxDecodeState
from edgesdk.engines.mlx.decoder import MlxDecoder
from edgesdk.engines.mlx.weights import StoredWeights
from edgesdk.engines.saved_state import KvIdentity
from edgesdk.errors import EngineError, UnsupportedBundle

_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


class MlxEngine:
    """Implements `edgesdk.engines.base.Engine`. Its states take turns on one thread."""

    def __init__(self, loaded: LoadedMlxDecoder, info: EngineInfo) -> None:
        self._loaded: LoadedMlxDecoder | None = loaded
        self.info: Final = info
        self.kv_identity: Final = loaded.kv_identity

    def new_state(self) -> MlxDecodeState:
        if self._loaded is None:
            raise EngineError("This engine is closed.", hint="Open the model again.")
        return MlxDecodeState(self._loaded)

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.thread.shutdown(wait=False)
            self._loaded = None


def open_engine(
    source: Bundle | Path,
    *,
    record: DeviceRecord,
    settings: LoadSettings,
) -> MlxEngine:
    """Load an ONNX bundle on MLX.

    Raises:
        UnsupportedBundle: the bundle does not say what its decoder is.
        DamagedBundle: what it says is malformed.
        EngineError: the model file cannot be read, or `source` is no bundle.
    """
    if not isinstance(source, Bundle):
        raise EngineError(f"{source} is not a bundle.", hint="Export the model to a bundle first.")
    started = time.perf_counter()
    shape, spec = source.manifest.shape, _spec_of(source)
    precision = str(settings.options.get("precision", record.kv_type))
    dtype = _DTYPES[precision]
    path = source.role_file("decoder")
    thread = ThreadPoolExecutor(1, thread_name_prefix="edgesdk-mlx")
    try:
        decoder = thread.submit(
            lambda: MlxDecoder(spec, StoredWeights(path, dtype), dtype)
        ).result()
    except BaseException:
        thread.shutdown(wait=False)
        raise
    context_length = min(shape.context_length, settings.context or shape.context_length)
    loaded = LoadedMlxDecoder(
        decoder=decoder,
        thread=thread,
        dtype=dtype,
        kv_shape=(shape.layers, 2, shape.kv_heads, shape.head_size),
        vocab_size=shape.vocab_size,
        context_length=context_length,
        kv_identity=KvIdentity(
            engine="mlx",
            model=source.sha256,
            layout=f"{precision}, {shape.layers} layers, {shape.kv_heads} KV heads of"
            f" {shape.head_size}",
        ),
    )
    metal = mx.metal.is_available()
    place = "Metal" if metal else "the CPU"
    info = EngineInfo(
        name=f"MLX {importlib.metadata.version('mlx')} on {place}",
        requested_device=settings.requested_device,
        placement=Placement(
            record.device,
            record.name,
            place,
            in_software=not metal,
            passed_over=settings.passed_over,
        ),
        vocab_size=shape.vocab_size,
        context_length=context_length,
        load_seconds=time.perf_counter() - started,
        concurrency=record.concurrency,
    )
    return MlxEngine(loaded, info)


def _spec_of(bundle: Bundle) -> DecoderSpec:
    spec = bundle.decoder_spec()
    if spec is None:
        raise UnsupportedBundle(
            f"The bundle {bundle.path} holds a graph of another exporter, which only onnxruntime"
            " runs.",
            hint="Load it with device='cpu'.",
        )
    return spec
