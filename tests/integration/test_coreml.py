"""The Core ML engine, from `edgesdk.load` on, with an interpreter in Core ML's place.

coremltools loads and runs packages on macOS only. `support.fake_coreml` stands for that part of it:
it takes and gives what coremltools does, and computes what the package says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgesdk_export.onnx.stored_weights import read_stored
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.onnx_decoding import OnnxDecoding
from support.tiny_models import make_tiny

import edgesdk
from edgesdk.bundle import coreml_io
from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import Engine
from edgesdk.engines.coreml.step_inputs import StepInputs
from edgesdk.engines.registry import footprint, open_engine
from edgesdk.errors import DeviceUnavailable, EngineError, InvalidOption
from edgesdk.system.cancellation import CancellationToken, Cancelled

pytest.importorskip("coremltools")
import coremltools
from edgesdk_export.coreml.interpreter import PackageInterpreter
from edgesdk_export.coreml.package import write_package
from support.fake_coreml import FakeCompiledModel, core_ml_in_numpy

pytestmark = pytest.mark.integration

TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(96)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_tiny("qwen2", folder)
    return folder


def exported(checkpoint: Path, folder: Path, target: str) -> Bundle:
    """A tiny model in float16."""
    job = ExportJob(
        checkpoint,
        folder / target,
        "tiny",
        format="coreml" if target == "coreml" else "onnx",
        target=target,
        scheme="fp16",
        prefill=16 if target == "coreml" else None,
        quality_tokens=0,
    )
    return export(job, SilentProgress())


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(checkpoint, tmp_path_factory.mktemp("bundle"), "coreml")


@pytest.fixture
def models(tmp_path: Path) -> Iterator[list[FakeCompiledModel]]:
    """The functions that coremltools was asked for, in order."""
    with core_ml_in_numpy(tmp_path / "home", rounded=False) as made:
        yield made


@pytest.fixture
def engine(bundle: Bundle, models: list[FakeCompiledModel]) -> Iterator[Engine]:
    made = open_engine(bundle, "coreml")
    yield made
    made.close()


def test_a_chat_is_that_of_the_cpu(
    checkpoint: Path, bundle: Bundle, models: list[FakeCompiledModel], tmp_path: Path
) -> None:
    cpu = exported(checkpoint, tmp_path, "cpu")
    texts: list[list[str]] = []
    for path, device in ((bundle.path, "coreml"), (cpu.path, "cpu")):
        with edgesdk.load(path, device=device) as model, model.chat() as chat:
            assert model.device.device == device
            first = chat.respond("What is the capital of France?", max_tokens=12, temperature=0)
            second = chat.respond("And then?", max_tokens=12, temperature=0)
            assert second.receipt.cached_tokens > 0
            picked = model.respond("Yes?", choices=["yes", "no"], temperature=0, max_tokens=8)
            texts.append([first.text, second.text, picked.text])
    assert texts[0] == texts[1]
    assert texts[0][2] in ("yes", "no")
    # What both turns share was computed once, and both functions were used.
    assert [each.function for each in models] == [coreml_io.PREFILL, coreml_io.DECODE]
    assert all(each.calls > 0 for each in models)


@pytest.mark.parametrize(
    ("device", "options", "units"),
    [
        ("coreml", {}, "ALL"),
        ("auto", {}, "ALL"),
        ("npu", {}, "CPU_AND_NE"),
        ("gpu", {}, "CPU_AND_GPU"),
        ("coreml", {"compute_units": "CPU_ONLY"}, "CPU_ONLY"),
        ("npu", {"compute_units": "ALL"}, "ALL"),
    ],
)
def test_core_ml_is_told_what_to_compute_on(
    device: str,
    options: Mapping[str, object],
    units: str,
    bundle: Bundle,
    models: list[FakeCompiledModel],
) -> None:
    engine = open_engine(bundle, device, options=options)
    assert {each.compute_units.name for each in models} == {units}
    placement = engine.info.placement
    assert (placement.device, placement.provider) == ("coreml", "Apple Core ML")
    assert ("as Core ML chooses" in placement.processor) == (units != "CPU_ONLY")
    engine.close()


def test_an_option_that_there_is_not(bundle: Bundle, models: list[FakeCompiledModel]) -> None:
    with pytest.raises(InvalidOption, match=r"must be one of ALL, CPU_AND_NE.*; not 'NPU'"):
        open_engine(bundle, "coreml", options={"compute_units": "NPU"})
    assert not models


def test_outside_macos_it_is_refused(bundle: Bundle) -> None:
    with pytest.raises(DeviceUnavailable, match="converts, and runs nothing outside macOS"):
        edgesdk.load(bundle.path, device="coreml")
    with pytest.raises(DeviceUnavailable, match="it is for Macs with Apple silicon"):
        edgesdk.load(bundle.path)
    with pytest.raises(InvalidOption, match="on the device 'cpu'"):
        edgesdk.load(bundle.path, device="cpu")


def test_it_says_what_core_ml_plans(bundle: Bundle, models: list[FakeCompiledModel]) -> None:
    engine = open_engine(bundle, "npu")
    (_, most), (_, rest) = engine.info.placement.nodes
    assert engine.info.placement.nodes == (("Neural Engine", most), ("CPU", rest))
    # One gather in each function.
    assert rest == 2
    assert most > 100
    engine.close()


def test_a_model_without_a_plan_runs_all_the_same(
    bundle: Bundle, models: list[FakeCompiledModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("MLComputePlan is not supported.")

    monkeypatch.setattr("coremltools.models.compute_plan.MLComputePlan.load_from_path", refuse)
    engine = open_engine(bundle, "coreml")
    assert engine.info.placement.nodes == ()
    assert engine.new_state().extend(TOKENS[:3]).shape == (1, 320)


def test_a_package_that_core_ml_cannot_load(
    bundle: Bundle, models: list[FakeCompiledModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Error in declaring network")

    with monkeypatch.context() as patch:
        patch.setattr("coremltools.models.utils.compile_model", refuse)
        with pytest.raises(EngineError, match=r"cannot compile .*model.mlpackage: Error in decl"):
            open_engine(bundle, "coreml")
    monkeypatch.setattr("coremltools.models.CompiledMLModel", refuse)
    with pytest.raises(EngineError, match=r"cannot load .*model.mlpackage: Error in declaring"):
        open_engine(bundle, "coreml")


def test_a_package_is_compiled_once_for_a_system(
    bundle: Bundle, models: list[FakeCompiledModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    compile_model = coremltools.models.utils.compile_model

    def counting(package: str, destination: str) -> str:
        compiled.append(destination)
        return str(compile_model(package, destination))

    monkeypatch.setattr("coremltools.models.utils.compile_model", counting)
    for system, wanted in (("15.0", 1), ("15.0", 1), ("26.0", 2)):
        monkeypatch.setattr("platform.mac_ver", lambda system=system: (system, ("", "", ""), ""))
        open_engine(bundle, "coreml").close()
        assert len(compiled) == wanted
    assert len(models) == 6


def test_rows_of_each_are_those_of_single_steps(engine: Engine) -> None:
    batch, single = engine.new_state(), engine.new_state()
    for state in (batch, single):
        state.extend(TOKENS[:20])
    rows = batch.extend(TOKENS[20:28], logits="each")
    steps, hidden = [], []
    for token in TOKENS[20:28]:
        steps.append(single.extend([token])[0].copy())
        assert single.hidden_states is not None
        hidden.append(single.hidden_states[0].copy())
    np.testing.assert_array_equal(rows, np.stack(steps))
    np.testing.assert_array_equal(batch.hidden_states, np.stack(hidden))


def test_chunks_end_where_they_would_in_one_piece(
    engine: Engine, models: list[FakeCompiledModel]
) -> None:
    """So that a prompt that is made again has the same numbers in its cache."""
    assert engine.info.prefill_step == 16
    engine.new_state().extend(TOKENS[:40])
    calls = [each.calls for each in models]
    assert calls == [3, 0]
    state = engine.new_state()
    state.extend(TOKENS[:10])
    state.extend(TOKENS[10:40])
    assert [each.calls for each in models] == [3 + 1 + 3, 0]


def test_a_fork_a_rewind_and_a_file_give_the_very_same_numbers(
    engine: Engine, tmp_path: Path
) -> None:
    state = engine.new_state()
    state.extend(TOKENS[:30])
    fork = state.fork()
    wanted = state.extend(TOKENS[30:31]).copy()
    np.testing.assert_array_equal(fork.extend(TOKENS[30:31]), wanted)
    fork.rewind(30)
    fork.extend(TOKENS[50:69])
    fork.rewind(30)
    np.testing.assert_array_equal(fork.extend(TOKENS[30:31]), wanted)
    fork.rewind(30)
    fork.save(tmp_path / "saved", {"turn": 3})
    restored = engine.new_state()
    restored.extend(TOKENS[60:90])
    assert restored.restore(tmp_path / "saved") == {"turn": 3}
    # A file holds float16, as Core ML's states do; the interpreter's are float32 here.
    np.testing.assert_allclose(restored.extend(TOKENS[30:31]), wanted, atol=0.02)


def test_cancelling_between_chunks_leaves_the_state_as_it_was(
    engine: Engine, models: list[FakeCompiledModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = engine.new_state()
    state.extend(TOKENS[:5])
    wanted = state.fork().extend(TOKENS[5:6])
    token = CancellationToken()
    predict = FakeCompiledModel.predict

    def cancelling(*arguments: Any) -> dict[str, Any]:
        token.cancel()
        return predict(*arguments)

    monkeypatch.setattr(FakeCompiledModel, "predict", cancelling)
    with pytest.raises(Cancelled):
        state.extend(TOKENS[5:60], cancellation=token)
    assert state.tokens == tuple(TOKENS[:5])
    np.testing.assert_array_equal(state.extend(TOKENS[5:6]), wanted)


def test_a_call_that_fails_leaves_the_state_as_it_was(
    engine: Engine, models: list[FakeCompiledModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = engine.new_state()
    state.extend(TOKENS[:5])
    wanted = state.fork().extend(TOKENS[5:6])
    predict = FakeCompiledModel.predict

    def failing(model: FakeCompiledModel, *arguments: Any) -> dict[str, Any]:
        if model.calls == 2:
            raise RuntimeError("Error in the Neural Engine")
        return predict(model, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(FakeCompiledModel, "predict", failing)
        with pytest.raises(EngineError, match="Core ML failed in prefill: Error in the Neural"):
            state.extend(TOKENS[5:60])
    assert state.tokens == tuple(TOKENS[:5])
    np.testing.assert_array_equal(state.extend(TOKENS[5:6]), wanted)


def test_memory_is_planned_without_core_ml(bundle: Bundle) -> None:
    found = footprint(bundle, "coreml")
    assert found.context_length == bundle.manifest.shape.context_length == 256
    package = sum(
        path.stat().st_size for path in bundle.role_file("decoder").rglob("*") if path.is_file()
    )
    assert found.need(1).weights == package
    static = bundle.manifest.static
    assert static is not None
    assert found.need(256).kv_cache == (256 + 16) * found.kv_bytes_per_token


# "What is the capital of France?", as a chat, and what a model may say.
QUESTION = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28]
ANSWER = [504, 3575, 282, 4649, 314, 7042, 30, 2]


@pytest.mark.parametrize("weights", [pytest.param("fp32", marks=pytest.mark.nightly), "int4"])
def test_smollm2_answers_as_onnxruntime_does(
    weights: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Bundle = request.getfixturevalue(f"smollm2_{weights}")
    spec = source.decoder_spec()
    assert spec is not None
    wanted = unrounded_graph(source).extend(QUESTION + ANSWER)
    shape = StaticShape(prefill_tokens=16, window=48)
    path = tmp_path / "model.mlpackage"
    write_package(path, spec, read_stored(source.role_file("decoder")), shape)
    package = PackageInterpreter(path, keep_weights=True)
    inputs, states = StepInputs(spec, shape), package.new_states(coreml_io.PREFILL)
    rows, start = [], 0
    for size in (len(QUESTION), *[1] * len(ANSWER)):
        ids = (QUESTION + ANSWER)[start : start + size]
        function, fed = inputs.of(ids, start, start + size)
        rows.append(package.run(function, fed, states)[coreml_io.LOGITS][0, :size])
        start += size
    found = np.concatenate(rows).astype(np.float32)
    assert (found.argmax(axis=1) == wanted.argmax(axis=1)).all()
    error = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert error.max() < 0.02


def unrounded_graph(bundle: Bundle) -> OnnxDecoding:
    """The bundle's own graph on onnxruntime, activations not rounded to 8 bits."""
    path = bundle.role_file("decoder")
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    exact = path.with_name("exact-beside-coreml.onnx")
    onnx.save(model, exact)
    spec = bundle.decoder_spec()
    assert spec is not None
    return OnnxDecoding(exact, spec, capacity=128)
