"""What a provider compiled is taken as a whole only; its compiler is stood in for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onnx import helper

from edgesdk.bundle.manifest import Manifest
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import LoadSettings
from edgesdk.engines.devices import DEVICES
from edgesdk.engines.npu import onnx_compiler
from edgesdk.engines.npu.onnx_compiler import OnnxCompiler
from edgesdk.errors import EngineError

QNN = next(record for record in DEVICES if record.device == "qualcomm")
PARTITIONS = [("EPContext", "qnn_1"), ("EPContext", "qnn_2")]


@pytest.fixture
def compile_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Compile to graphs of the given nodes."""

    def compile_to(nodes: list[tuple[str, str]], **settings: Any) -> None:
        made = [helper.make_node(operator, [], ["y"], name=name) for operator, name in nodes]
        model = helper.make_model(helper.make_graph(made, "g", [], []))

        class StandIn:
            def __init__(self, *arguments: Any, **options: Any) -> None: ...

            def compile_to_file(self, path: str) -> None:
                Path(path).write_bytes(model.SerializeToString())

        monkeypatch.setattr(onnx_compiler.ort, "ModelCompiler", StandIn)
        roles = {"prefill": "prefill.onnx", "decode": "decode.onnx"}
        manifest = Manifest.model_construct(roles=roles, static=None, files=())
        bundle = Bundle(tmp_path, manifest, "00" * 32)
        chosen = LoadSettings("qualcomm", threads=1, **settings)
        OnnxCompiler(bundle, QNN, None, chosen).write(tmp_path, lambda done, of: None)

    options = SimpleNamespace(add_provider_for_devices=lambda devices, options: None)
    monkeypatch.setattr(onnx_compiler, "session_options", lambda settings, config: options)
    monkeypatch.setattr(onnx_compiler, "device_for", lambda record, requested: None)
    return compile_to


def test_partitions_are_named_and_refused_unless_they_are_allowed(compile_to) -> None:
    with pytest.raises(EngineError, match=r"into 2 partitions \(qnn_1, qnn_2\)") as raised:
        compile_to(PARTITIONS)
    assert "allow_fallback=True" in str(raised.value.hint)
    compile_to(PARTITIONS, allow_fallback=True)


def test_what_is_left_to_the_cpu_is_never_compiled(compile_to) -> None:
    with pytest.raises(EngineError, match="it leaves 1 MatMulNBits"):
        compile_to([*PARTITIONS, ("MatMulNBits", "layers.0.qkv")], allow_fallback=True)
