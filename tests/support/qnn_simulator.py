"""Runs graphs on Qualcomm's simulator of its NPU, as the engine does."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper

from edgesdk.engines.base import LoadSettings
from edgesdk.engines.devices import DEVICES, DeviceRecord
from edgesdk.engines.npu.onnx_compiler import chosen_target, with_target
from edgesdk.engines.npu.onnx_static_graphs import SESSION_CONFIG
from edgesdk.engines.onnx.providers import device_for, session_options

Array = npt.NDArray[Any]
RECORD = next(record for record in DEVICES if record.device == "qualcomm")
SETTINGS = LoadSettings("qualcomm", threads=1)
# What the package's wheels for Linux need.
_OLDEST_GLIBC = (2, 35)


def require_simulator() -> DeviceRecord:
    """Skip the test, with the reason, where the simulator cannot be had; else give its record."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("the simulator is for Linux on x86-64")
    libc = tuple(int(part) for part in platform.libc_ver()[1].split("."))
    if libc < _OLDEST_GLIBC:
        pytest.skip("onnxruntime-qnn needs glibc 2.35")
    pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn needs Python 3.11")
    return RECORD


def graph(
    nodes: list[onnx.NodeProto],
    weights: Mapping[str, Array | onnx.TensorProto],
    inputs: Mapping[str, Array],
    output: tuple[str, tuple[int | str, ...]],
    *,
    shapes: Mapping[str, tuple[int | str, ...]] | None = None,
) -> onnx.ModelProto:
    """A model of nodes whose output has the first input's type."""
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    dims = {name: array.shape for name, array in inputs.items()} | dict(shapes or {})
    name, shape = output
    return helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info(each, types[each], dims[each]) for each in inputs],
            [helper.make_tensor_value_info(name, next(iter(types.values())), shape)],
            [
                weight
                if isinstance(weight, onnx.TensorProto)
                else onnx.numpy_helper.from_array(np.asarray(weight), each)
                for each, weight in weights.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )


def on_cpu(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> Array:
    """Its output on the CPU, as float32, computed without rounding activations that the graph does
    not round."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        session_options(SETTINGS, SESSION_CONFIG),
        providers=["CPUExecutionProvider"],
    )
    return np.asarray(session.run(None, dict(inputs))[0], np.float32)


def on_simulator(
    model: onnx.ModelProto, inputs: Mapping[str, Array], folder: Path, *, strict: bool = True
) -> tuple[Array, dict[str, int]]:
    """Its output on the simulator, as float32, and how many nodes each provider runs.

    Args:
        strict: fail where a node would run on the CPU.
    """
    path = folder / "graph.onnx"
    onnx.save(model, path)
    config = {"session.disable_cpu_ep_fallback": "1" if strict else "0"}
    options = session_options(SETTINGS, config)
    chosen = with_target(SETTINGS, chosen_target(RECORD, SETTINGS, simulated=True)).options
    options.add_provider_for_devices(
        [device_for(RECORD, "qualcomm")],
        {**dict(RECORD.session_options), **{name: str(value) for name, value in chosen.items()}},
    )
    session = onnxruntime.InferenceSession(str(path), options, enable_fallback=0)
    nodes: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        nodes[part.ep_name] = nodes.get(part.ep_name, 0) + len(part.get_nodes())
    return np.asarray(session.run(None, dict(inputs))[0], np.float32), nodes
