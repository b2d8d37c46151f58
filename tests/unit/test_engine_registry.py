from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgesdk.engines.gguf.library import load_library
from edgesdk.engines.registry import DEVICES, DeviceRecord, choose_device, open_engine
from edgesdk.errors import EngineError, InvalidOption, MissingExtra

NPU = DeviceRecord("onnx-npu", "onnx", "npu", "nowhere:open_engine", "nowhere:footprint")


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize("model_format", ["onnx", "gguf"])
def test_both_formats_run_on_the_cpu(model_format: str, device: str) -> None:
    record = choose_device(model_format, device)
    assert (record.format, record.device) == (model_format, "cpu")


def test_auto_takes_the_first() -> None:
    assert choose_device("onnx", "auto", records=(NPU, *DEVICES)) is NPU
    assert choose_device("onnx", "auto", records=(*DEVICES, NPU)) is DEVICES[0]
    assert choose_device("onnx", "npu", records=(*DEVICES, NPU)) is NPU


def test_unknown_device_lists_what_there_is() -> None:
    with pytest.raises(InvalidOption, match=r"onnx models on the device 'tpu'.*: auto, cpu, npu"):
        choose_device("onnx", "tpu", records=(*DEVICES, NPU))
    with pytest.raises(InvalidOption, match=r"gguf models on the device 'npu'.*: auto, cpu\."):
        choose_device("gguf", "npu", records=(*DEVICES, NPU))


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"neither an opened bundle nor a \.gguf file"):
        open_engine(tmp_path / "model.bin")


@pytest.mark.parametrize("option", ["threads", "context"])
def test_options_below_one(tmp_path: Path, option: str) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    with pytest.raises(InvalidOption, match=f"{option} must be at least 1"):
        open_engine(tmp_path / "x.gguf", **{option: 0})  # type: ignore[arg-type]


def test_without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MissingExtra, match=r"edgesdk\[gguf\]"):
        load_library.__wrapped__()


def test_the_registry_loads_no_engine() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import edgesdk.engines.registry;"
        "heavy = {'onnxruntime', 'llama_cpp', 'onnx', 'torch'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *sys.path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
