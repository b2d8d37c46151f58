"""Answers on the CPU while a model is compiled for its device, and then moves there.

Compiling for an NPU takes from seconds to minutes, once for each model and device. It runs in a
process of its own, which ends with this one, so it can neither block nor crash the app. What it
made lies in the compile cache, and the device loads it from there. Chats move between two turns.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import Engine, LoadSettings
from edgesdk.engines.device_record import imported
from edgesdk.engines.npu.compile_cache import CompileCache
from edgesdk.engines.npu.compile_worker import CODE, MARK, CompileOrder
from edgesdk.engines.registry import EngineOpener, check_options
from edgesdk.engines.selection import DeviceCandidate, fitting, select
from edgesdk.errors import EdgeError, EngineError
from edgesdk.runtime import Runtime

_LOG = logging.getLogger("edgesdk.warm_start")
# The device that answers meanwhile.
STAND_IN = "cpu"
# Compilers write gigabytes and may not end at once.
_PATIENCE_SECONDS = 5.0

WarmStartState = Literal["compiling", "loading", "ready", "failed", "closed"]


@dataclass(frozen=True)
class ColdDevice:
    """A device that a model was not compiled for yet, and the CPU, which stands in for it.

    Attributes:
        settings: how the device is to load the model.
    """

    source: Bundle
    device: DeviceCandidate
    stand_in: DeviceCandidate
    settings: LoadSettings

    @property
    def order(self) -> CompileOrder:
        """What is to be compiled."""
        return CompileOrder(
            str(self.source.path.absolute()),
            self.device.record.device,
            self.settings.threads,
            self.settings.context,
            dict(self.settings.options),
        )

    def open_stand_in(self) -> Engine:
        """Load the model on the CPU; raises as `edgesdk.engines.registry.open_engine` does."""
        why = f"{self.device.record.name}: it is being compiled"
        settings = replace(self.settings, options={}, passed_over=(why,))
        return _open(self.source, self.stand_in, settings)

    def open_device(self) -> Engine:
        """Load the model on the device, for which it is compiled; raises likewise."""
        return _open(self.source, self.device, self.settings)


def may_be_cold(source: Bundle | Path, device: str) -> bool:
    """Whether `device` compiles such a model; no device is looked for.

    Raises:
        InvalidOption, UnsupportedBundle, EngineError: as `edgesdk.engines.selection.fitting`.
    """
    return bool(fitting(source, device)[0].record.compiler)


def cold_device(source: Bundle | Path, settings: LoadSettings) -> ColdDevice | None:
    """The device that was asked for, where it has to compile the model first; else None.

    Raises:
        InvalidOption, DeviceUnavailable, UnsupportedBundle, EngineError: as
            `edgesdk.engines.registry.open_engine`.
    """
    if not isinstance(source, Bundle):
        return None
    device = select(source, settings.requested_device).candidates[0]
    if not device.record.compiler:
        return None
    check_options(device.record, settings.options)
    # Loads onnxruntime, which models of other formats do not need.
    from edgesdk.engines.npu.compiling import is_compiled

    try:
        if is_compiled(source, device, settings):
            return None
    # Whatever the provider's library raises, as where it compiles for NPUs and this is none. Its
    # engine says better what is wrong, if anything is.
    except Exception:
        return None
    return ColdDevice(source, device, fitting(source, STAND_IN)[0], settings)


def _open(source: Bundle, candidate: DeviceCandidate, settings: LoadSettings) -> Engine:
    opener = cast("EngineOpener", imported(candidate.support.opener))
    return opener(source, record=candidate.record, settings=settings)


class WarmStart:
    """Gets a device ready while the CPU answers; implements `edgesdk.runtime.Successor`.

    Args:
        order: what is to be compiled.
        open_on_device: loads the model on the device, once it is compiled.
    """

    def __init__(self, order: CompileOrder, open_on_device: Callable[[], Runtime]) -> None:
        self._order = order
        self._open_on_device = open_on_device
        self._guard = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._runtime: Runtime | None = None
        self._over = threading.Event()
        self._state: WarmStartState = "compiling"
        self._progress = (0, 1)
        self._error: EdgeError | None = None
        self._thread = threading.Thread(target=self._run, name="edgesdk-warm-start", daemon=True)

    @property
    def state(self) -> WarmStartState:
        """How far it is. After "failed" the CPU goes on answering; see `error`."""
        return self._state

    @property
    def progress(self) -> tuple[int, int]:
        """How many of how many graphs are compiled."""
        return self._progress

    @property
    def error(self) -> EdgeError | None:
        """Why the device does not take over; None while it may."""
        return self._error

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is ready, has failed or is closed; False where it is not after so many
        seconds."""
        return self._over.wait(timeout)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def take(self) -> Runtime | None:
        return self._runtime

    def close(self) -> None:
        with self._guard:
            self._state = "closed"
            process, runtime = self._process, self._runtime
        if process is not None:
            _end(process)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        if process is not None:
            CompileCache().remove_unfinished()
        if runtime is not None:
            runtime.close()
        self._over.set()

    def _run(self) -> None:
        try:
            self._compile()
            if not self._entered("loading"):
                return
            runtime = self._open_on_device()
            with self._guard:
                if self._state != "closed":
                    self._runtime, self._state = runtime, "ready"
                    return
            runtime.close()
        # The exceptions of native libraries have no common base.
        except Exception as error:
            if self._entered("failed"):
                _LOG.warning("the CPU goes on answering: %s", error)
                self._error = error if isinstance(error, EdgeError) else EngineError(str(error))
        finally:
            self._over.set()

    def _entered(self, state: WarmStartState) -> bool:
        with self._guard:
            if self._state == "closed":
                return False
            self._state = state
            return True

    def _compile(self) -> None:
        """Compile in a process of its own.

        Raises:
            EngineError: it failed, or was ended.
        """
        command = [sys.executable, "-c", CODE, json.dumps(sys.path), self._order.to_json()]
        with tempfile.TemporaryFile("w+", errors="replace") as words:
            with self._guard:
                if self._state == "closed":
                    return
                self._process = process = subprocess.Popen(
                    command,
                    # Its end tells that process that this one is gone.
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=words,
                    text=True,
                    errors="replace",
                )
            assert process.stdout is not None, "it is piped"
            with process:
                for line in process.stdout:
                    if line.startswith(MARK):
                        self._hear(json.loads(line.removeprefix(MARK)))
            if process.returncode:
                words.seek(0)
                raise _not_compiled(_why(process.returncode, words.read()))

    def _hear(self, said: Mapping[str, object]) -> None:
        if "error" in said:
            raise _not_compiled(str(said["error"]))
        done, of = said["done"], said["of"]
        assert isinstance(done, int)
        assert isinstance(of, int)
        self._progress = (done, of)


def _not_compiled(why: str) -> EngineError:
    return EngineError(f"The model was not compiled for its device: {why}")


def _why(code: int, words: str) -> str:
    if code < 0:
        return f"it crashed ({signal.Signals(-code).name})"
    said = words.strip().splitlines()
    return said[-1] if said else f"it ended with exit code {code}"


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
