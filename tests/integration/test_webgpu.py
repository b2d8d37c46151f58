"""The unchanged ONNX bundles on WebGPU, here on a GPU in software.

Everything runs in processes of their own, where the provider's package is installed and a GPU is
listed; see `support.software_gpu`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.software_gpu import SoftwareGpu, software_gpu
from support.tiny_models import make_tiny

pytestmark = pytest.mark.integration

# Prints figures of a bundle on WebGPU, and on the CPU without rounded activations.
COMPARE = """
import json, sys
import numpy as np
from edgesdk.bundle.opening import open_bundle
from edgesdk.engines import devices
from edgesdk.engines.onnx.split_engine import SplitEngine
from edgesdk.engines.registry import open_engine
from pathlib import Path
from dataclasses import replace

bundle = open_bundle(Path(sys.argv[1]))
ids = np.random.default_rng(3).integers(0, bundle.manifest.shape.vocab_size, 40).tolist()

def logits(engine):
    state = engine.new_state()
    rows = [state.extend(ids[:24], logits="all").copy()]
    rows += [state.extend([token]).copy() for token in ids[24:32]]
    state.rewind(28)
    rows += [state.fork().extend(ids[28:], logits="all").copy()]
    return np.concatenate(rows)

def whole(engine):
    return engine.new_state().extend(ids, logits="all").copy()

gpu = open_engine(bundle, "webgpu", threads=1)
exact = tuple(
    replace(each, accuracy_level=1) if each.name == "onnxruntime" else each
    for each in devices.DEVICES
)
devices.DEVICES = exact
cpu = open_engine(bundle, "cpu", threads=1)
found, wanted = logits(gpu), logits(cpu)
split = SplitEngine(gpu, cpu)
state = split.new_state()
shared = [state.extend(ids[:36]).copy(), *[state.extend([token]).copy() for token in ids[36:]]]
print(json.dumps({
    "placement": gpu.info.placement.figures(),
    "top1": float((found.argmax(1) == wanted.argmax(1)).mean()),
    "error": float(np.abs(found - wanted).max()),
    "same_states": gpu.kv_identity == cpu.kv_identity,
    "split": split.info.placement.line(),
    "split_error": float(np.abs(np.concatenate(shared) - whole(cpu)[35:]).max()),
}))
"""
# Says what the public API makes of the machine.
ASK = """
import json, sys
import edgesdk

def ask(device, **arguments):
    try:
        with edgesdk.load(sys.argv[1], device=device, threads=1, **arguments) as model:
            reply = model.complete("a", max_tokens=3)
            return {"line": str(model.device), "receipt": reply.receipt.figures()["placement"]}
    except edgesdk.EdgeError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint}

gpu = next(each for each in edgesdk.devices() if each.device == "webgpu")
print(json.dumps({
    "state": gpu.state, "found": gpu.found,
    "webgpu": ask("webgpu"), "gpu": ask("gpu"), "auto": ask("auto"),
    "fallback": ask("gpu", allow_fallback=True),
}))
"""


@pytest.fixture(scope="module")
def gpu() -> SoftwareGpu:
    found = software_gpu()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="module")
def tiny_int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in 4 bits, as `edgesdk export` makes it for the CPU."""
    folder = tmp_path_factory.mktemp("webgpu")
    # Wide enough for the kernels that round activations to 8 bits.
    make_tiny("llama", folder / "checkpoint", hidden_size=128, intermediate_size=256)
    job = ExportJob(folder / "checkpoint", folder / "tiny", "tiny", scheme="int4", quality_tokens=0)
    export(job, SilentProgress())
    return folder / "tiny"


def answer(gpu: SoftwareGpu, code: str, *arguments: object, card: bool = True) -> dict[str, Any]:
    done = gpu.run("-c", code, *map(str, arguments), timeout=300, card=card)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "which",
    [
        "webgpu and (one_piece or pieces or own_ways or new_engine or several_threads)",
        pytest.param("webgpu", marks=pytest.mark.nightly),
    ],
)
def test_decode_states_keep_their_contract(gpu: SoftwareGpu, which: str) -> None:
    done = gpu.run(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *(str(Path(__file__).with_name("test_engine_contract.py")), "-k", which),
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout[-3000:]


def test_a_quantized_bundle_runs_whole_and_without_rounded_activations(
    gpu: SoftwareGpu, tiny_int4: Path
) -> None:
    found = answer(gpu, COMPARE, tiny_int4)
    nodes = found["placement"]["nodes"]
    assert list(nodes) == ["WebGpuExecutionProvider"], nodes
    assert nodes["WebGpuExecutionProvider"] > 10
    assert found["placement"]["in_software"]
    assert found["top1"] == 1.0
    # With activations in 8 bits, as the bundle asks for, it is more than 1e-2.
    assert found["error"] < 1e-3
    assert found["split"] == "cpu (onnxruntime, the CPU); prompts on webgpu (GPU (SwiftShader))"
    assert found["split_error"] < 1e-3
    assert found["same_states"], "a chat that was saved on the CPU goes on here"


def test_a_gpu_in_software_is_taken_by_its_name_only(gpu: SoftwareGpu, tiny_int4: Path) -> None:
    found = answer(gpu, ASK, tiny_int4)
    assert found["state"] == "software"
    assert "GPU (SwiftShader)" in found["found"]
    assert found["webgpu"]["line"] == "webgpu (WebGPU, GPU (SwiftShader)); in software"
    assert found["webgpu"]["receipt"]["in_software"]
    assert found["gpu"]["error"] == "DeviceUnavailable"
    assert "device='webgpu' takes it" in found["gpu"]["message"]
    assert found["auto"]["receipt"]["device"] == "cpu"
    assert found["fallback"]["receipt"]["device"] == "cpu"
    assert "device='webgpu' takes it" in found["fallback"]["receipt"]["passed_over"][0]


def test_no_gpu_at_all(gpu: SoftwareGpu, tiny_int4: Path) -> None:
    found = answer(gpu, ASK, tiny_int4, card=False)
    assert found["state"] == "no device"
    assert found["webgpu"]["error"] == "DeviceUnavailable"
    assert "it finds no device" in found["webgpu"]["message"]
    assert found["auto"]["receipt"]["device"] == "cpu"
