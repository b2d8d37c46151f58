"""Blobs for Intel's NPUs are compiled by a program, or by the package where it can.

The package's compiler is for Windows; here its answers are those of its documentation.
"""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgesdk.engines.devices import DEVICES
from edgesdk.engines.openvino.npu_compiler import (
    PROGRAM_VARIABLE,
    compatibility,
    npu_compiler,
)
from edgesdk.errors import EngineError

pytestmark = pytest.mark.integration

FOR_4000 = {"NPU_PLATFORM": "4000"}
RECORD = next(record for record in DEVICES if record.device == "intel")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A graph that adds two vectors."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 64]) for name in "abc"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"])], "g", ports[:2], ports[2:]
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


def program(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "compile"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(PROGRAM_VARIABLE, str(path))


def test_a_program_is_given_the_model_the_blob_and_the_platform(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, 'printf "%s %s %s" "$1" "$3" "$4" > "$2"', monkeypatch)
    blob = tmp_path / "decode.blob"
    npu_compiler({**FOR_4000, "NPU_COMPILATION_MODE_PARAMS": "a=b"})(model, blob)
    assert blob.read_text() == f"{model} NPU_PLATFORM=4000 NPU_COMPILATION_MODE_PARAMS=a=b"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('echo "partly" > "$2"; echo "no room in CMX"; exit 1', "for 4000: no room in CMX"),
        ("exit 0", "it wrote nothing"),
    ],
)
def test_a_program_that_fails_leaves_no_blob(
    body: str, said: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, body, monkeypatch)
    with pytest.raises(EngineError, match=said):
        npu_compiler(FOR_4000)(model, tmp_path / "decode.blob")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compile", "model.onnx"]


def test_a_program_that_is_not_there_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROGRAM_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(EngineError, match="nowhere cannot be started"):
        npu_compiler(FOR_4000)(model, tmp_path / "decode.blob")


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not there")
@pytest.mark.skipif(sys.platform == "win32", reason="openvino for Windows has an NPU compiler")
def test_the_package_for_linux_has_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROGRAM_VARIABLE, raising=False)
    with pytest.raises(EngineError, match="no NPU compiler on this system") as caught:
        npu_compiler({})
    assert PROGRAM_VARIABLE in str(caught.value.hint)


def test_the_package_for_windows_compiles_for_a_platform_that_is_not_here(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def compile_model(*arguments: object) -> Any:
        asked.append(arguments)
        return SimpleNamespace(export_model=lambda: BytesIO(b"blob"))

    blob = tmp_path / "decode.blob"
    monkeypatch.delenv(PROGRAM_VARIABLE, raising=False)
    core = SimpleNamespace(compile_model=compile_model, get_property=lambda *_: 524292)
    openvino = SimpleNamespace(Core=lambda: core)
    monkeypatch.setitem(sys.modules, "openvino", openvino)  # type: ignore[arg-type]
    npu_compiler({"NPU_PLATFORM": "5010"})(model, blob)
    properties = {"NPU_PLATFORM": "5010", "NPU_COMPILER_TYPE": "PLUGIN"}
    assert asked == [(str(model), "NPU", properties)]
    assert blob.read_bytes() == b"blob"


@pytest.mark.nightly
@pytest.mark.skipif(
    PROGRAM_VARIABLE not in os.environ,
    reason=f"{PROGRAM_VARIABLE} names no compiler; tools/intel_npu_compiler makes one",
)
@pytest.mark.parametrize("platform", [target.name for target in RECORD.compile_targets])
def test_intels_own_compiler_makes_a_blob(platform: str, model: Path, tmp_path: Path) -> None:
    blob = tmp_path / "model.blob"
    npu_compiler({"NPU_PLATFORM": platform})(model, blob)
    # Blobs are ELF files, with what they are for at the end.
    assert blob.read_bytes()[:4] == b"\x7fELF"
    assert f";npu={platform};" in compatibility(blob)
