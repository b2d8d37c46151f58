"""Loads a `.tflite` decoder from a bundle, and checks that it is one that can be driven."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgesdk.bundle import litert_io
from edgesdk.bundle.manifest import Manifest, StaticShape
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import EngineInfo, LoadSettings, Placement
from edgesdk.engines.devices import DeviceRecord
from edgesdk.engines.litert.decode_state import LitertDecodeState, LoadedTflite
from edgesdk.engines.saved_state import KvIdentity
from edgesdk.errors import DamagedBundle, EngineError, InvalidOption, requires_extra

_Shapes = Mapping[str, tuple[int, ...]]


class LitertEngine:
    """Implements `edgesdk.engines.base.Engine`. Its states take turns at one interpreter."""

    def __init__(self, loaded: LoadedTflite, info: EngineInfo) -> None:
        self._loaded: LoadedTflite | None = loaded
        self.info: Final = info
        self.kv_identity: Final = loaded.kv_identity

    def new_state(self) -> LitertDecodeState:
        if self._loaded is None:
            raise EngineError("This engine is closed.", hint="Open the model again.")
        return LitertDecodeState(self._loaded)

    def close(self) -> None:
        self._loaded = None


def open_engine(
    source: Bundle | Path, *, record: DeviceRecord, settings: LoadSettings
) -> LitertEngine:
    """Load the decoder of a LiteRT bundle.

    Raises:
        MissingExtra: LiteRT is not installed.
        InvalidOption: the delegate cannot be loaded.
        DamagedBundle: the file's signatures are not what the manifest promises.
        EngineError: LiteRT, which checks what it maps, cannot load the model; or `source` is no
            bundle.
    """
    if not isinstance(source, Bundle):
        raise EngineError(f"{source} is not a bundle.", hint="Export the model to a bundle first.")
    started = time.perf_counter()
    manifest, path = source.manifest, source.role_file("decoder")
    shape, static = manifest.shape, manifest.static
    if static is None:
        raise DamagedBundle(f"{source.path} does not say its static shapes.", hint=_HINT)
    delegate = settings.options.get("delegate")
    signatures = _signatures(path, settings.threads, None if delegate is None else str(delegate))
    _check_signatures(signatures, manifest, static, where=str(path))
    context_length = min(shape.context_length, settings.context or shape.context_length)
    caches = [name for layer in range(shape.layers) for name in litert_io.cache_names(layer)]
    cache_shape = (1, shape.kv_heads, static.window, shape.head_size)
    loaded = LoadedTflite(
        signatures=signatures,
        empty=dict.fromkeys(caches, np.zeros(cache_shape, np.float32)),
        prefill_tokens=static.prefill_tokens,
        # Products of codes are exact, in whatever order they are added. Those of floats differ on
        # some Arm cores with the number of tokens.
        alike=delegate is None and manifest.quantization.weights != "fp32",
        vocab_size=shape.vocab_size,
        context_length=context_length,
        kv_identity=KvIdentity(
            engine="litert",
            model=source.sha256,
            layout=f"{record.kv_type}, {shape.layers} layers, {shape.kv_heads} KV heads of"
            f" {shape.head_size}",
        ),
    )
    info = EngineInfo(
        name=f"LiteRT {importlib.metadata.version('ai-edge-litert')}",
        requested_device=settings.requested_device,
        placement=Placement(
            record.device,
            record.name,
            "the CPU" if delegate is None else f"the delegate {delegate}",
            in_software=delegate is None,
            passed_over=settings.passed_over,
        ),
        vocab_size=shape.vocab_size,
        context_length=context_length,
        load_seconds=time.perf_counter() - started,
        concurrency=record.concurrency,
        threads=settings.threads,
        prefill_step=0 if loaded.alike else static.prefill_tokens,
    )
    return LitertEngine(loaded, info)


def _signatures(path: Path, threads: int, delegate: str | None) -> dict[str, Any]:
    """What runs each signature of a file; all of them share one interpreter."""
    with requires_extra("litert", needed_for="Running LiteRT models"):
        from ai_edge_litert.interpreter import Interpreter, load_delegate
    delegates = []
    if delegate is not None:
        try:
            # LiteRT's own object prints a complaint of its own where the library does not load.
            ctypes.CDLL(delegate)
            delegates.append(load_delegate(delegate))
        except (OSError, ValueError) as error:
            raise InvalidOption(
                f"The delegate {delegate} cannot be loaded: {error}",
                hint="Name the library of a LiteRT delegate for this machine.",
            ) from None
    try:
        interpreter = Interpreter(
            os.fspath(path), experimental_delegates=delegates, num_threads=threads
        )
        return {
            name: interpreter.get_signature_runner(name)
            for name in (litert_io.PREFILL, litert_io.DECODE, litert_io.HEAD)
        }
    # Its exceptions have no common base.
    except Exception as error:
        raise EngineError(
            f"LiteRT cannot load {path}: {error}", hint="Check it with: edgesdk verify"
        ) from error


def _check_signatures(
    signatures: dict[str, Any], manifest: Manifest, static: StaticShape, *, where: str
) -> None:
    """Refuse a file whose signatures do not take and give what the manifest promises.

    Raises:
        DamagedBundle: with the first port that is missing or has another shape.
    """
    shape, size = manifest.shape, static.prefill_tokens
    cache_shape = (1, shape.kv_heads, static.window, shape.head_size)
    caches = {
        name: cache_shape for layer in range(shape.layers) for name in litert_io.cache_names(layer)
    }
    for name, count in ((litert_io.PREFILL, size), (litert_io.DECODE, 1), (litert_io.HEAD, size)):
        states = {litert_io.HIDDEN_STATES: (1, count, shape.hidden_size)}
        logits = {litert_io.LOGITS: (1, count, shape.vocab_size)}
        tokens = {litert_io.TOKENS: (1, count), litert_io.POSITIONS: (count,)}
        if name == litert_io.HEAD:
            inputs: _Shapes = states
            outputs: _Shapes = logits
        else:
            inputs = {**tokens, **caches}
            outputs = {**caches, **states, **({} if name == litert_io.PREFILL else logits)}
        runner = signatures[name]
        _check_ports(runner.get_input_details(), inputs, f"{where}: the inputs of {name!r}")
        _check_ports(runner.get_output_details(), outputs, f"{where}: the outputs of {name!r}")


def _check_ports(details: dict[str, Any], wanted: _Shapes, where: str) -> None:
    found = {name: tuple(int(size) for size in entry["shape"]) for name, entry in details.items()}
    if found == wanted:
        return
    name = next(name for name in (*wanted, *found) if found.get(name) != wanted.get(name))
    raise DamagedBundle(
        f"{where} are not those of the manifest: {name} is {found.get(name, 'missing')}, not"
        f" {wanted.get(name, 'there')}.",
        hint=_HINT,
    )


_HINT = "Pull or export the model again."
