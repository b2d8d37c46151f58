"""Loads the functions of a Core ML package with coremltools, and calls them.

Nothing else here knows coremltools. A package is compiled once for this system, and kept.
"""

from __future__ import annotations

import importlib.metadata
import platform
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgesdk.bundle import coreml_io
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.npu.compile_cache import (
    CompileCache,
    CompileKey,
    CompileProgress,
    load_compiled,
)
from edgesdk.errors import EngineError, MissingExtra
from edgesdk.system.cancellation import CancellationToken

Array = npt.NDArray[Any]

_COMPILED = "model.mlmodelc"
_HINT = "It needs macOS 15 or newer. Check the files with: edgesdk verify"


class CacheState(Protocol):
    """The states of one sequence; coremltools calls it `MLState` (from 9.0 on, macOS 15)."""

    def read_state(self, name: str) -> Array:
        """A copy of a state; float32 where it is float16."""

    def write_state(self, name: str, value: Array) -> None:
        """Set a state; `value` is float32."""


class CoreMlFunctions:
    """The functions of one package, over the same weights and states.

    Apple wants a model to be used on one thread at a time, so calls wait for one another.

    Args:
        bundle: has the package in the role "decoder".
        compute_units: what Core ML may compute on, by coremltools' names.
        cache: where compiled packages are kept.

    Raises:
        MissingExtra: coremltools is not installed.
        EngineError: Core ML cannot compile or load the package, or the disk is full.
    """

    def __init__(self, bundle: Bundle, compute_units: str, cache: CompileCache) -> None:
        try:
            import coremltools
        except ImportError:
            raise MissingExtra("coremltools", extra="coreml", needed_for="Core ML") from None
        self._lock = threading.Lock()
        package = bundle.role_file("decoder")
        compiler = PackageCompiler(package, bundle.sha256)
        units = coremltools.ComputeUnit[compute_units]

        def load(folder: Path) -> dict[str, Any]:
            self._planned = planned_operations(folder / _COMPILED, units)
            return {
                function: coremltools.models.CompiledMLModel(
                    str(folder / _COMPILED), compute_units=units, function_name=function
                )
                for function in (coreml_io.PREFILL, coreml_io.DECODE)
            }

        try:
            self._models = load_compiled(cache, compiler, load)
        except EngineError:
            raise
        # coremltools raises plain Exception, and whatever Core ML gives it.
        except Exception as error:
            raise EngineError(f"Core ML cannot load {package}: {error}", hint=_HINT) from error

    @property
    def planned(self) -> tuple[tuple[str, int], ...]:
        """See `planned_operations`."""
        return self._planned

    def new_state(self) -> CacheState:
        """States of zeros, for all functions."""
        with self._lock:
            state: CacheState = self._models[coreml_io.PREFILL].make_state()
        return state

    def run(
        self,
        function: str,
        inputs: Mapping[str, Array],
        state: CacheState,
        cancellation: CancellationToken | None,
    ) -> Mapping[str, Array]:
        """Call a function; its outputs by name. It reads `state`, and writes it.

        Raises:
            EngineError: Core ML failed.
            Cancelled: `cancellation` ended before it was this call's turn.
        """
        waiting = perf_counter()
        with self._lock:
            if cancellation is not None:
                cancellation.queue_seconds += perf_counter() - waiting
                cancellation.raise_if_cancelled()
            # coremltools takes no float16, and turns it into float32 in the very mapping.
            fed = {name: _widened(value) for name, value in inputs.items()}
            try:
                outputs: Mapping[str, Array] = self._models[function].predict(fed, state)
            except Exception as error:
                raise EngineError(f"Core ML failed in {function}: {error}") from error
        return outputs


@dataclass(frozen=True)
class PackageCompiler:
    """Implements `edgesdk.engines.npu.compile_cache.Compiler` for this machine.

    Attributes:
        package: the `.mlpackage` folder.
        model: the hash of its bundle.
    """

    package: Path
    model: str

    @property
    def key(self) -> CompileKey:
        return CompileKey(
            model=self.model,
            provider="Core ML",
            versions=(f"macOS {platform.mac_ver()[0]}", coremltools_version()),
            platform=platform.machine(),
        )

    def write(self, folder: Path, progress: CompileProgress) -> str:
        import coremltools

        try:
            coremltools.models.utils.compile_model(str(self.package), str(folder / _COMPILED))
        except Exception as error:
            raise EngineError(
                f"Core ML cannot compile {self.package}: {error}", hint=_HINT
            ) from error
        progress(1, 1)
        return ""


def coremltools_version() -> str:
    """The name and version of coremltools."""
    return f"coremltools {importlib.metadata.version('coremltools')}"


def planned_operations(compiled: Path, compute_units: Any) -> tuple[tuple[str, int], ...]:
    """The processors on which Core ML plans to compute, and how many operations each gets, most
    first; empty where it does not say.

    Args:
        compiled: the `.mlmodelc` folder.
        compute_units: one of `coremltools.ComputeUnit`.
    """
    from coremltools.models import compute_device, compute_plan

    names = {
        compute_device.MLNeuralEngineComputeDevice: "Neural Engine",
        compute_device.MLGPUComputeDevice: "GPU",
        compute_device.MLCPUComputeDevice: "CPU",
    }
    counts: Counter[str] = Counter()
    try:
        plan = compute_plan.MLComputePlan.load_from_path(str(compiled), compute_units)
        for function in plan.model_structure.program.functions.values():
            for operation in function.block.operations:
                usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
                if usage is not None:
                    counts[names[type(usage.preferred_compute_device)]] += 1
    # A plan is only for people: a model that has none runs all the same.
    except Exception:
        return ()
    return tuple(counts.most_common())


def _widened(value: Array) -> Array:
    return value.astype(np.float32) if value.dtype == np.float16 else value
