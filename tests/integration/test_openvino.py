"""OpenVINO computes what the checkpoint says: on this processor, by itself and through NPUW.

An Intel GPU or NPU takes the same way. Where a test needs one, the processor stands in for it.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.npu.build import GRAPH_FILES
from edgesdk_export.onnx import WeightScheme
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.exported import made_once
from support.static_pairs import static_state
from support.tiny_models import VARIANTS, make_tiny

import edgesdk
from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.opening import Bundle, open_bundle
from edgesdk.cli import compile
from edgesdk.engines.base import Engine, LoadSettings, Logits
from edgesdk.engines.devices import DEVICES, HOST_PROVIDER
from edgesdk.engines.npu.compile_cache import CompileCache
from edgesdk.engines.npu.decode_state import LoadedStaticModel, StaticDecodeState
from edgesdk.engines.onnx import engine as onnx_engine
from edgesdk.engines.openvino.library import load_openvino
from edgesdk.engines.openvino.npu_compiler import PROGRAM_VARIABLE
from edgesdk.engines.openvino.static_graphs import OpenVinoStaticGraphs
from edgesdk.engines.registry import open_engine
from edgesdk.errors import DamagedBundle, DeviceUnavailable, EngineError, InvalidOption

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
    ),
]

# Past every window of the tiny models (24 at most).
TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(48)]
SHAPE = StaticShape(prefill_tokens=16, window=64, dtype="float32")
CPU = {"device": "CPU"}
NPUW = {"device": "CPU", "NPU_USE_NPUW": "YES"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_every_family_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    model = make_tiny(variant, tmp_path)
    with torch.no_grad():
        wanted = model(torch.tensor([TOKENS])).logits[0].numpy()
    decoder = read_decoder(open_checkpoint(tmp_path))
    scheme = WeightScheme.named("fp32")
    on_cpu = static_state(decoder, tmp_path, scheme=scheme, shape=SHAPE)._model
    openvino = load_openvino()
    core = openvino.Core()
    exactly = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": 1}
    graphs: Any = {
        graph: core.compile_model(str(tmp_path / name), "CPU", exactly)
        for graph, name in GRAPH_FILES.items()
    }
    state = StaticDecodeState(
        LoadedStaticModel(
            graphs=OpenVinoStaticGraphs(openvino, graphs),
            spec=on_cpu.spec,
            shape=on_cpu.shape,
            context_length=on_cpu.context_length,
            kv_identity=on_cpu.kv_identity,
            rope_rows=on_cpu.rope_rows,
        )
    )
    np.testing.assert_allclose(state.extend(TOKENS[:47]), wanted[46:47], atol=1e-3)
    np.testing.assert_allclose(state.extend(TOKENS[47:]), wanted[47:], atol=1e-3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of a tiny llama for Intel, by the names of their number formats."""
    folder = tmp_path_factory.mktemp("intel")
    make_tiny("llama", folder / "checkpoint")
    for scheme in ("fp32", "int4"):
        job = ExportJob(
            folder / "checkpoint",
            folder / scheme,
            "tiny",
            scheme=scheme,
            target="intel",
            window=64,
            prefill=16,
            quality_tokens=0,
        )
        export(job, SilentProgress())
    return folder


def logits(engine: Engine) -> Logits:
    """Of whole chunks, a part of one, and single tokens."""
    state = engine.new_state()
    parts = [TOKENS[:16], TOKENS[16:21], *([token] for token in TOKENS[21:32])]
    return np.concatenate([state.extend(part) for part in parts]).copy()


@pytest.mark.parametrize("scheme", ["fp32", "int4"])
@pytest.mark.parametrize("options", [CPU, NPUW], ids=["processor", "NPUW"])
def test_logits_are_those_of_the_cpu_engine(
    scheme: str, options: dict[str, object], tiny: Path
) -> None:
    bundle = open_bundle(tiny / scheme)
    wanted = logits(open_engine(bundle, "cpu", threads=1))
    engine = open_engine(bundle, "intel", threads=1, options=options)
    found = logits(engine)
    assert (found.argmax(axis=1) == wanted.argmax(axis=1)).all()
    exact = bundle.manifest.static == SHAPE.model_copy(update={"dtype": "float32"})
    np.testing.assert_allclose(found, wanted, atol=1e-3 if exact else 0.1)
    placement = engine.info.placement
    assert placement.device == "intel"
    assert placement.in_software
    assert placement.processor.startswith("CPU (")


def test_by_default_the_processor_would_round(tiny: Path) -> None:
    """What `EXECUTION_MODE_HINT=ACCURACY` is for: the inputs of int4 matrices in 8 bits."""
    bundle = open_bundle(tiny / "int4")
    wanted = logits(open_engine(bundle, "cpu", threads=1))
    rounded = open_engine(bundle, "intel", options={"EXECUTION_MODE_HINT": "PERFORMANCE"})
    exact = open_engine(bundle, "intel", options={})
    assert np.abs(logits(rounded) - wanted).max() > 3 * np.abs(logits(exact) - wanted).max()


@pytest.mark.parametrize("device", ["GPU", "NPU"])
def test_a_device_that_is_not_here_is_refused(device: str, tiny: Path) -> None:
    listed = load_openvino().Core().available_devices
    if any(name.startswith(device) for name in listed):
        pytest.skip(f"this machine has a {device}")
    with pytest.raises(DeviceUnavailable, match=f"no {device} here; it lists CPU") as caught:
        open_engine(open_bundle(tiny / "fp32"), "intel", options={"device": device})
    assert "device_options={'device': 'CPU'}" in str(caught.value.hint)


def test_options_are_checked(tiny: Path) -> None:
    bundle = open_bundle(tiny / "fp32")
    with pytest.raises(InvalidOption, match="no option 'NPUW_DEVICE'"):
        open_engine(bundle, "intel", options={"NPUW_DEVICE": "CPU"})
    with pytest.raises(InvalidOption, match="must be one of NPU, GPU, CPU"):
        open_engine(bundle, "intel", options={"device": "TPU"})
    # What OpenVINO itself refuses.
    with pytest.raises(EngineError, match=r"cannot compile .* for CPU .* NPU_TURBO"):
        open_engine(bundle, "intel", options={"NPU_TURBO": "YES"})


def test_a_graph_of_another_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tiny / "fp32")
    manifest = bundle.manifest
    assert manifest.static is not None
    wider = manifest.static.model_copy(update={"window": 32})
    other = Bundle(bundle.path, manifest.model_copy(update={"static": wider}), bundle.sha256)
    with pytest.raises(DamagedBundle, match=r"input 'mask' has shape \[1, 1, 16, 80\]"):
        open_engine(other, "intel", options=CPU)


@pytest.fixture
def npu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """An NPU of platform 4000 whose blobs this processor runs; gives the calls that it took.

    What it answers is from OpenVINO's documentation: none is here.
    """
    openvino = load_openvino()
    real, calls = openvino.Core(), []
    real.set_property("CPU", {"INFERENCE_NUM_THREADS": 1, "EXECUTION_MODE_HINT": "ACCURACY"})
    known = {"DEVICE_ARCHITECTURE": "4000", "FULL_DEVICE_NAME": "Intel(R) AI Boost"}

    def compile_model(model: str, device: str, properties: dict[str, str]) -> Any:
        calls.append(f"compile {Path(model).stem} {properties}")
        assert device == "NPU"
        return real.compile_model(model, "CPU")

    def import_model(blob: bytes, device: str, properties: dict[str, str]) -> Any:
        calls.append("import")
        assert device == "NPU"
        return real.import_model(blob, "CPU")

    core = SimpleNamespace(
        available_devices=["CPU", "NPU"],
        get_property=lambda _, name: known[name],
        set_property=lambda *_: None,
        compile_model=compile_model,
        import_model=import_model,
    )
    fake = SimpleNamespace(
        Core=lambda: core, Tensor=openvino.Tensor, __version__=openvino.__version__
    )
    monkeypatch.setattr("edgesdk.engines.openvino.engine.load_openvino", lambda: fake)
    monkeypatch.setenv("EDGESDK_HOME", str(tmp_path / "home"))
    return calls


def test_an_npu_compiles_once_and_then_imports(npu: list[str], tiny: Path) -> None:
    bundle = open_bundle(tiny / "fp32")
    wanted = logits(open_engine(bundle, "cpu", threads=1))
    compiled = ["compile prefill {}", "compile decode {}"]
    for calls in ([*compiled, "import", "import"], ["import", "import"]):
        engine = open_engine(bundle, "intel", threads=1)
        np.testing.assert_allclose(logits(engine), wanted, atol=1e-3)
        assert npu == calls
        assert not engine.info.placement.in_software
        assert engine.info.placement.processor == "NPU (Intel(R) AI Boost)"
        npu.clear()
    # A blob that does not load is compiled again.
    blob = next(CompileCache().folder.rglob("decode.blob"))
    entry = blob.with_name("entry.json")
    entry.write_text(entry.read_text().replace('"crc32": ', '"crc32": 1'))
    open_engine(bundle, "intel", threads=1)
    assert npu == [*compiled, "import", "import"]


def test_an_npu_takes_the_blobs_that_a_bundle_brings(
    npu: list[str], tiny: Path, tmp_path: Path
) -> None:
    bundle = open_bundle(tiny / "fp32")
    open_engine(bundle, "intel", threads=1)
    npu.clear()
    CompileCache().folder.rename(bundle.path / "compiled")
    open_engine(bundle, "intel", threads=1)
    assert npu == ["import", "import"]
    # Those for other properties are not the same.
    other = {"INFERENCE_PRECISION_HINT": "f16"}
    open_engine(bundle, "intel", threads=1, options=other)
    assert npu[2:4] == [f"compile prefill {other}", f"compile decode {other}"]


def test_the_command_line_compiles_for_several_platforms(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "compiler"
    program.write_text('#!/bin/sh\nprintf "%s compiler=8.4;%s" "$1" "$3" > "$2"\n')
    program.chmod(0o755)
    monkeypatch.setenv(PROGRAM_VARIABLE, str(program))
    asked = [str(tiny / "int4"), "--device", "intel", "--output", str(tmp_path / "made"), "--json"]
    done = CliRunner().invoke(compile.command, [*asked, "--platform", "4000,5010"])
    assert done.exit_code == 0, done.output
    entries = json.loads(done.stdout)
    assert [entry["key"]["platform"] for entry in entries] == ["4000", "5010"]
    assert [entry["compatibility"] for entry in entries] == [
        "compiler=8.4;NPU_PLATFORM=4000",
        "compiler=8.4;NPU_PLATFORM=5010",
    ]
    for graph in ("prefill", "decode"):
        made = Path(entries[0]["path"]) / f"{graph}.blob"
        assert made.read_text().startswith(str(tiny / "int4" / f"{graph}.onnx"))
    wrong = CliRunner().invoke(compile.command, [*asked, "--platform", "4100"])
    assert isinstance(wrong.exception, InvalidOption)
    assert "4000 (NPU 4, Lunar Lake)" in str(wrong.exception.hint)


def smollm2(scheme: str, gguf: Path, factory: pytest.TempPathFactory) -> Bundle:
    def make(path: Path) -> None:
        job = ExportJob(
            gguf,
            path,
            "smollm2-intel",
            scheme=scheme,
            target="intel",
            window=256,
            prefill=32,
            quality_tokens=0,
        )
        export(job, SilentProgress())

    return open_bundle(made_once(factory, f"smollm2-intel-{scheme}", make))


@pytest.fixture(scope="module")
def smollm2_fp32(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """SmolLM2 for Intel in float32."""
    return smollm2("fp32", smollm2_gguf, tmp_path_factory)


@pytest.fixture(scope="module")
def smollm2_int4(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """SmolLM2 for Intel in 4 bits, with one scale for each output."""
    return smollm2("int4", smollm2_gguf, tmp_path_factory)


IDS = [504, 2365, 282, 4649, 314, 260, 3575, 282, 260, 905, 30, 339, 5248, 253, 2644] * 3


def test_smollm2_computes_what_the_cpu_engine_does(smollm2_fp32: Bundle) -> None:
    wanted = open_engine(smollm2_fp32, "cpu").new_state().extend(IDS, logits="all")
    found = open_engine(smollm2_fp32, "intel", options=CPU).new_state().extend(IDS, logits="all")
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.nightly
@pytest.mark.parametrize("options", [CPU, NPUW], ids=["processor", "NPUW"])
def test_smollm2_in_4_bits(options: dict[str, object], smollm2_int4: Bundle) -> None:
    wanted = open_engine(smollm2_int4, "cpu").new_state().extend(IDS, logits="all")
    engine = open_engine(smollm2_int4, "intel", options=options)
    found = engine.new_state().extend(IDS, logits="all")
    assert (found.argmax(axis=1) == wanted.argmax(axis=1)).all()


def test_chats_fork_save_and_go_on(smollm2_fp32: Bundle, tmp_path: Path) -> None:
    options: dict[str, object] = dict(CPU)
    with (
        edgesdk.load(smollm2_fp32.path, device="intel", device_options=options) as model,
        model.chat() as chat,
    ):
        assert model.device.device == "intel"
        assert "in software" in model.device.line()
        reply = chat.respond("What is the capital of France?", max_tokens=10, temperature=0)
        assert "Paris" in reply.text
        chat.save(tmp_path / "saved")
        with chat.fork() as twin, model.restore(tmp_path / "saved") as restored:
            answers = [
                each.respond("Say it in one word.", max_tokens=4, temperature=0)
                for each in (chat, twin, restored)
            ]
        assert all(answer.receipt.cached_tokens > 0 for answer in answers)
        assert len({answer.text for answer in answers}) == 1
        yes = model.respond("Is the sky blue?", choices=["yes", "no"], temperature=0, max_tokens=8)
        assert yes.text in ("yes", "no")


def exported_for_the_cpu(variant: str, folder: Path, scheme: str) -> Bundle:
    make_tiny(variant, folder / "checkpoint")
    job = ExportJob(folder / "checkpoint", folder / "cpu", "tiny", scheme=scheme, quality_tokens=0)
    export(job, SilentProgress())
    return open_bundle(folder / "cpu")


def logits_one_by_one(engine: Engine) -> Logits:
    """Of a prompt, and of tokens after it."""
    state = engine.new_state()
    rows = [state.extend(TOKENS[:32], logits="all").copy()]
    return np.concatenate(rows + [state.extend([token]).copy() for token in TOKENS[32:]])


# Windows, a rope of its own for some layers, norms of queries and keys, and longer ropes.
@pytest.mark.parametrize("variant", ["mistral", "qwen3", "gemma3", "llama-llama3"])
def test_the_graph_for_the_cpu_gives_the_logits_of_transformers(variant: str, tmp_path) -> None:
    model = make_tiny(variant, tmp_path / "checkpoint")
    with torch.no_grad():
        wanted = model(torch.tensor([TOKENS])).logits[0].numpy()
    engine = open_engine(exported_for_the_cpu(variant, tmp_path, "fp32"), "intel", threads=1)
    np.testing.assert_allclose(logits_one_by_one(engine), wanted, atol=1e-3)


def test_the_4_bit_graph_for_the_cpu_gives_the_logits_of_its_weights(tmp_path: Path) -> None:
    bundle = exported_for_the_cpu("llama", tmp_path, "int4")
    cpu = next(record for record in DEVICES if record.provider == HOST_PROVIDER)
    settings = LoadSettings("cpu", threads=1)
    exact = onnx_engine.open_engine(
        bundle, record=replace(cpu, accuracy_level=1), settings=settings
    )
    found = logits_one_by_one(open_engine(bundle, "intel", threads=1))
    np.testing.assert_allclose(found, logits_one_by_one(exact), atol=1e-3)
    with edgesdk.load(bundle.path, device="intel", threads=1) as model:
        reply = model.complete("a", max_tokens=4)
        assert reply.receipt.device == "intel"
        assert "CPU" in str(model.device)


def test_a_graph_for_the_cpu_that_openvino_does_not_know(tmp_path: Path) -> None:
    bundle = exported_for_the_cpu("gemma2", tmp_path, "fp32")
    with pytest.raises(EngineError, match="GroupQueryAttention") as caught:
        open_engine(bundle, "intel", threads=1)
    assert "--target intel" in str(caught.value.hint)


def test_a_graph_for_the_cpu_is_for_no_npu(tmp_path: Path) -> None:
    bundle = exported_for_the_cpu("llama", tmp_path, "fp32")
    with pytest.raises(InvalidOption, match="--target npu"):
        open_engine(bundle, "npu")
    with pytest.raises(DeviceUnavailable):
        open_engine(bundle, "intel", options={"device": "NPU"})
