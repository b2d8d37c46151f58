"""Loads the functions of a Core ML package with coremltools, and calls them."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgesdk.bundle import coreml_io
from edgesdk.errors import EngineError, MissingExtra
from edgesdk.system.cancellation import CancellationToken

Array = npt.NDArray[Any]


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
        path: the `.mlpackage` folder.
        compute_units: what Core ML may compute on, by coremltools' names.

    Raises:
        MissingExtra: coremltools is not installed.
        EngineError: Core ML cannot compile or load the package.
    """

    def __init__(self, path: Path, compute_units: str) -> None:
        try:
            import coremltools
        except ImportError:
            raise MissingExtra("coremltools", extra="coreml", needed_for="Core ML") from None
        self.version = importlib.metadata.version("coremltools")
        self._lock = threading.Lock()
        # Compiled once for both functions.
        self._folder = tempfile.mkdtemp(prefix="edgesdk-coreml-")
        compiled = str(Path(self._folder) / "model.mlmodelc")
        try:
            coremltools.models.utils.compile_model(str(path), compiled)
            self._models = {
                function: coremltools.models.CompiledMLModel(
                    compiled,
                    compute_units=coremltools.ComputeUnit[compute_units],
                    function_name=function,
                )
                for function in (coreml_io.PREFILL, coreml_io.DECODE)
            }
        # coremltools raises plain Exception, and whatever Core ML gives it.
        except Exception as error:
            self.close()
            raise EngineError(
                f"Core ML cannot load {path}: {error}",
                hint="It needs macOS 15 or newer. Check the files with: edgesdk verify",
            ) from error

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

    def close(self) -> None:
        """Remove what was compiled. A model that is loaded stays so."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _widened(value: Array) -> Array:
    return value.astype(np.float32) if value.dtype == np.float16 else value
