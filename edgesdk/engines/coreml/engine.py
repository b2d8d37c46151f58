"""Loads the Core ML package of a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.opening import Bundle
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.engines.base import EngineInfo, LoadSettings, Placement
from edgesdk.engines.coreml.decode_state import CoreMlDecodeState, LoadedCoreMlDecoder
from edgesdk.engines.coreml.functions import CoreMlFunctions, coremltools_version
from edgesdk.engines.coreml.step_inputs import StepInputs
from edgesdk.engines.devices import DeviceRecord
from edgesdk.engines.npu.compile_cache import CompileCache
from edgesdk.engines.saved_state import KvIdentity
from edgesdk.errors import EngineError, UnsupportedBundle

# What Core ML may compute on; it chooses among them for each operation.
_PROCESSORS = {
    "ALL": "CPU, GPU and Neural Engine",
    "CPU_AND_NE": "CPU and Neural Engine",
    "CPU_AND_GPU": "CPU and GPU",
    "CPU_ONLY": "CPU",
}
# By the kind of device that was asked for.
_UNITS = {"npu": "CPU_AND_NE", "gpu": "CPU_AND_GPU"}


class CoreMlEngine:
    """Implements `edgesdk.engines.base.Engine`. Calls of its states wait for one another."""

    def __init__(self, loaded: LoadedCoreMlDecoder, info: EngineInfo) -> None:
        self._loaded: LoadedCoreMlDecoder | None = loaded
        self.info: Final = info
        self.kv_identity: Final = loaded.kv_identity

    def new_state(self) -> CoreMlDecodeState:
        if self._loaded is None:
            raise EngineError("This engine is closed.", hint="Open the model again.")
        return CoreMlDecodeState(self._loaded)

    def close(self) -> None:
        # States that are alive keep the functions.
        self._loaded = None


def open_engine(
    source: Bundle | Path, *, record: DeviceRecord, settings: LoadSettings
) -> CoreMlEngine:
    """Load the package of a bundle with Core ML.

    Raises:
        UnsupportedBundle: the bundle does not say what its decoder is.
        DamagedBundle: what it says is malformed.
        MissingExtra: coremltools is not installed.
        EngineError: Core ML cannot load the package, or `source` is no bundle.
    """
    if not isinstance(source, Bundle):
        raise EngineError(f"{source} is not a bundle.", hint="Export the model to a bundle first.")
    started = time.perf_counter()
    spec, static = _described(source)
    wanted = _UNITS.get(settings.requested_device, "ALL")
    units = str(settings.options.get("compute_units", wanted))
    functions = CoreMlFunctions(source, units, CompileCache())
    limit = source.manifest.shape.context_length
    context_length = min(limit, settings.context or limit)
    loaded = LoadedCoreMlDecoder(
        functions=functions,
        spec=spec,
        shape=static,
        inputs=StepInputs(spec, static),
        context_length=context_length,
        kv_identity=KvIdentity(
            engine="coreml",
            model=source.sha256,
            layout=f"{record.kv_type}, {spec.layers} layers, {spec.kv_heads} KV heads of"
            f" {spec.head_size}",
        ),
    )
    processor = _PROCESSORS[units]
    info = EngineInfo(
        name=f"Core ML, by {coremltools_version()}",
        requested_device=settings.requested_device,
        placement=Placement(
            record.device,
            record.name,
            f"{processor}, as Core ML chooses" if units != "CPU_ONLY" else processor,
            nodes=functions.planned,
            passed_over=settings.passed_over,
        ),
        vocab_size=spec.vocab_size,
        context_length=context_length,
        load_seconds=time.perf_counter() - started,
        concurrency=record.concurrency,
        # `prefill` and `decode` are other programs, whose last bits may differ.
        prefill_step=static.prefill_tokens,
    )
    return CoreMlEngine(loaded, info)


def _described(bundle: Bundle) -> tuple[DecoderSpec, StaticShape]:
    spec, static = bundle.decoder_spec(), bundle.manifest.static
    if spec is None or static is None:
        raise UnsupportedBundle(
            f"The bundle {bundle.path} does not say what the functions of its package take.",
            hint="Export the model again with this version of edgesdk.",
        )
    return spec, static
