"""A stand-in for the catalog of Windows ML gives real libraries of providers, which run models.

The catalog needs Windows. What it says of a provider is where the library lies and whether it is
ready; the stand-in says so of the provider of Qualcomm's simulator, and of WebGPU's on a GPU in
software. All of it runs in processes of their own, where no library is registered yet.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.exported import made_once
from support.other_process import run_python
from support.qnn_simulator import require_simulator
from support.software_gpu import software_gpu
from support.tiny_models import make_tiny

pytestmark = pytest.mark.integration

MODULE = """
import json
from enum import IntEnum
from pathlib import Path

class EpReadyState(IntEnum):
    Ready = 0
    NotReady = 1
    NotPresent = 2

class ExecutionProvider:
    version = "9.9"

    def __init__(self, name, library, state):
        self.name, self._library, self.ready_state = name, library, EpReadyState[state]

    @property
    def library_path(self):
        if self.ready_state != EpReadyState.Ready:
            return ""
        module, _, function = self._library.partition(":")
        return str(getattr(__import__(module), function)()) if function else self._library

    def ensure_ready(self):
        assert self.ready_state == EpReadyState.NotReady, "nothing is downloaded"
        self.ready_state = EpReadyState.Ready

class EpCatalog:
    def find_all_providers(self):
        providers = json.loads(Path(__file__).with_suffix(".json").read_text())
        return [ExecutionProvider(*each) for each in providers]
"""
ASK = """
import json, sys
import edgesdk

found = {}
for device in sys.argv[2:]:
    try:
        with edgesdk.load(sys.argv[1], device=device, threads=1) as model:
            texts = ("a", "Hello there.", "Once upon")
            tokens = [model.complete(text, max_tokens=8).tokens for text in texts]
            found[device] = {"tokens": tokens, "placement": model.device.figures()}
    except edgesdk.EdgeError as error:
        found[device] = {"error": type(error).__name__, "message": str(error)}
windows = next(each for each in edgesdk.devices() if each.device == "windows")
print(json.dumps({**found, "probe": [windows.state, windows.found]}))
"""
QNN = ("QNNExecutionProvider", "onnxruntime_qnn:get_library_path")
WEBGPU = ("WebGpuExecutionProvider", "onnxruntime_ep_webgpu:get_library_path")
ABSENT = ("NvTensorRTRTXExecutionProvider", "", "NotPresent")
BROKEN = ("VitisAIExecutionProvider", "/nowhere/onnxruntime_vitisai_ep.dll", "Ready")


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The list of providers that the stand-in finds."""
    monkeypatch.setenv("EDGESDK_HOME", str(tmp_path / "home"))
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / "windowsml.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    return folder / "windowsml.json"


def exported(folder: Path, **job: Any) -> None:
    make_tiny("llama", folder / "checkpoint", hidden_size=128, intermediate_size=256)
    export(
        ExportJob(folder / "checkpoint", folder / "tiny", "tiny", quality_tokens=0, **job),
        SilentProgress(),
    )


def test_qualcomms_provider_runs_from_where_the_catalog_says(
    catalog: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    require_simulator()
    bundle = made_once(
        tmp_path_factory,
        "windows-static",
        lambda folder: exported(folder, target="windows", scheme="fp16", prefill=32, window=64),
    )
    catalog.write_text(json.dumps([BROKEN, ABSENT, [*QNN, "NotReady"]]))
    found = run_python(ASK, str(bundle / "tiny"), "windows", "npu")
    state, words = found["probe"]
    assert state == "software"
    assert "QNNExecutionProvider 9.9: CPU" in words
    placement = found["windows"]["placement"]
    assert (placement["device"], placement["provider"]) == (
        "windows",
        "QNNExecutionProvider of Windows ML",
    )
    assert placement["nodes"] == {"QNNExecutionProvider": 2}
    assert placement["in_software"]
    absent, broken = placement["passed_over"][::-1]
    assert "Windows has not installed it" in absent
    assert "/nowhere/onnxruntime_vitisai_ep.dll" in broken
    # A simulator is no NPU.
    assert found["npu"]["error"] == "DeviceUnavailable"
    direct = run_python(ASK, str(bundle / "tiny"), "qualcomm")["qualcomm"]
    assert found["windows"]["tokens"] == direct["tokens"]
    assert 8 in map(len, direct["tokens"])


def test_a_gpus_provider_runs_the_unchanged_bundle(
    catalog: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    gpu = software_gpu()
    if isinstance(gpu, str):
        pytest.skip(gpu)
    bundle = made_once(
        tmp_path_factory, "windows-fused", lambda folder: exported(folder, scheme="int4")
    )
    catalog.write_text(json.dumps([ABSENT, [*WEBGPU, "Ready"]]))
    done = gpu.run("-c", ASK, str(bundle / "tiny"), "windows", "webgpu", timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "placement" in found["webgpu"], found["webgpu"]
    placement = found["windows"]["placement"]
    assert placement["provider"] == "WebGpuExecutionProvider of Windows ML"
    assert placement["nodes"] == found["webgpu"]["placement"]["nodes"]
    assert list(placement["nodes"]) == ["WebGpuExecutionProvider"]
    assert found["windows"]["tokens"] == found["webgpu"]["tokens"]
