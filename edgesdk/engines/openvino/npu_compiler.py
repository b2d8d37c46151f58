"""Compiles static graphs to blobs of Intel's NPUs, on machines that need have none.

OpenVINO's packages for Windows hold the NPU compiler. On other systems a program in the
environment variable `EDGESDK_INTEL_NPU_COMPILER` does the same; `tools/intel_npu_compiler` makes
one that runs the Windows package under wine. A blob is whole, or there is an error: the compiler
leaves nothing to the CPU.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from edgesdk.engines.openvino.library import load_openvino, reason
from edgesdk.errors import EngineError
from edgesdk.system.atomic_files import atomic_file, atomic_path

PROGRAM_VARIABLE = "EDGESDK_INTEL_NPU_COMPILER"
# The property that names the generation of NPUs to compile for.
PLATFORM = "NPU_PLATFORM"
# OpenVINO writes what a blob is for near its end.
_COMPATIBILITY = re.compile(rb"compiler=[ -~]+")
_TAIL = 4096
_HOW_TO = "docs/how-to/intel-npu-blobs.md"


class NpuCompiler(Protocol):
    """Compiles one model."""

    def __call__(self, model: Path, blob: Path) -> None:
        """Write `blob`, whole or not at all.

        Raises:
            EngineError: the compiler cannot compile the model.
        """


def npu_compiler(properties: Mapping[str, str]) -> NpuCompiler:
    """The compiler that is at hand: the program that the environment names, or OpenVINO's own.

    Args:
        properties: OpenVINO's, the platform among them.

    Raises:
        MissingExtra: openvino is not installed, and no program is named.
        EngineError: this openvino has no NPU compiler.
    """
    program = os.environ.get(PROGRAM_VARIABLE)
    if program:
        return CompilerProgram(Path(program), properties)
    core = load_openvino().Core()
    try:
        core.get_property("NPU", "NPU_COMPILER_VERSION")
    except RuntimeError as error:
        raise EngineError(
            f"The package openvino has no NPU compiler on this system: {reason(error)}.",
            hint=f"Compile on Windows, or name a program in {PROGRAM_VARIABLE}: see {_HOW_TO}.",
        ) from error
    return PackagedCompiler(core, {"NPU_COMPILER_TYPE": "PLUGIN", **properties})


class PackagedCompiler:
    """The compiler in the package openvino, or in the driver of an NPU that is here.

    Args:
        core: an `openvino.Core`.
        properties: OpenVINO's, with the platform where that is another than the NPU's here.
    """

    def __init__(self, core: Any, properties: Mapping[str, str]) -> None:
        self._core = core
        self._properties = dict(properties)

    def __call__(self, model: Path, blob: Path) -> None:
        try:
            compiled = self._core.compile_model(str(model), "NPU", self._properties)
            content = compiled.export_model().getvalue()
        except RuntimeError as error:
            raise _not_compiled(model, self._properties, reason(error)) from error
        with atomic_file(blob) as stream:
            stream.write(content)


class CompilerProgram:
    """A program with the arguments MODEL BLOB NAME=VALUE..., which prints why it fails.

    Args:
        properties: OpenVINO's, the platform among them.
    """

    def __init__(self, program: Path, properties: Mapping[str, str]) -> None:
        self._program = program
        self._properties = dict(properties)

    def __call__(self, model: Path, blob: Path) -> None:
        with atomic_path(blob) as beside:
            command = [str(self._program), str(model), str(beside)]
            command += [f"{name}={value}" for name, value in self._properties.items()]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, errors="replace", check=False
                )
            except OSError as error:
                raise EngineError(
                    f"The NPU compiler {self._program} cannot be started: {error.strerror}.",
                    hint=f"{PROGRAM_VARIABLE} must name a program: see {_HOW_TO}.",
                ) from error
            if done.returncode != 0:
                said = reason(RuntimeError(done.stdout + done.stderr))
                raise _not_compiled(model, self._properties, said)
            if beside.stat().st_size == 0:
                raise _not_compiled(model, self._properties, "it wrote nothing")


def compatibility(blob: Path) -> str:
    """What OpenVINO says that a blob is for, such as "compiler=8.4;npu=4000"; "" where nothing."""
    with blob.open("rb") as stream:
        stream.seek(max(0, blob.stat().st_size - _TAIL))
        found = _COMPATIBILITY.search(stream.read())
    return "" if found is None else found.group().decode("ascii")


def _not_compiled(model: Path, properties: Mapping[str, str], why: str) -> EngineError:
    platform = properties.get(PLATFORM, "the NPU that is here")
    return EngineError(
        f"Intel's NPU compiler cannot compile {model} for {platform}: {why}.",
        hint="Export the model with --target intel.",
    )
