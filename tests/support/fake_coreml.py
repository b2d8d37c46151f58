"""coremltools' runtime, which works on macOS only, with numpy in the place of Core ML.

What goes in and comes out has the types that coremltools 9.0 has: float32 in the place of float16,
and copies of states. An input of another name or shape is an error, as it is there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coremltools
import numpy as np
import pytest
from coremltools.models import compute_device, compute_plan
from edgesdk_export.coreml.interpreter import PackageInterpreter

from edgesdk.engines import devices
from edgesdk.engines.devices import DeviceProbe, DeviceRecord

Array = np.ndarray[Any, Any]


class FakeState:
    """`coremltools.models.model.MLState`."""

    def __init__(self, states: dict[str, Array]) -> None:
        self.states = states

    def read_state(self, name: str) -> Array:
        return self.states[name].astype(np.float32)

    def write_state(self, name: str, value: Array) -> None:
        assert value.dtype == np.float32
        assert value.shape == self.states[name].shape
        self.states[name] = value.astype(self.states[name].dtype)


class FakeCompiledModel:
    """`coremltools.models.CompiledMLModel`."""

    made: list[FakeCompiledModel]
    rounded = True

    def __init__(self, path: str, compute_units: Any, function_name: str) -> None:
        self.function = function_name
        self.compute_units = compute_units
        self.calls = 0
        package = Path(path).resolve()
        self._package = PackageInterpreter(package, rounded=self.rounded, keep_weights=True)
        names = [each.name for each in self._package.description.functions]
        assert function_name in names
        self._inputs = self._package.description.functions[names.index(function_name)].input
        self.made.append(self)

    def make_state(self) -> FakeState:
        return FakeState(self._package.new_states(self.function))

    def predict(self, data: Mapping[str, Array], state: FakeState) -> dict[str, Array]:
        self.calls += 1
        assert data.keys() == {each.name for each in self._inputs}
        halves = coremltools.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT16
        inputs = {}
        for each in self._inputs:
            wanted: Any = np.int32
            if each.type.multiArrayType.dataType == halves:
                # Its C++ part takes no float16.
                assert data[each.name].dtype == np.float32
                wanted = self._package.floats
            inputs[each.name] = data[each.name].astype(wanted)
        outputs = self._package.run(self.function, inputs, state.states)
        return {name: value.astype(np.float32) for name, value in outputs.items()}


class FakePlan:
    """`coremltools.models.compute_plan.MLComputePlan`: the CPU gathers, others do the rest."""

    def __init__(self, path: str, units: Any) -> None:
        package = PackageInterpreter(Path(path).resolve())
        functions = {
            name: SimpleNamespace(block=SimpleNamespace(operations=package.operations(name)))
            for name in (each.name for each in package.description.functions)
        }
        program = SimpleNamespace(functions=functions)
        self.model_structure = SimpleNamespace(program=program)
        self._units = units

    @classmethod
    def load_from_path(cls, path: str, units: Any) -> FakePlan:
        return cls(path, units)

    def get_compute_device_usage_for_mlprogram_operation(self, kind: str) -> Any:
        if kind == "const":
            return None
        kinds = {
            "CPU_AND_NE": compute_device.MLNeuralEngineComputeDevice,
            "CPU_AND_GPU": compute_device.MLGPUComputeDevice,
            "ALL": compute_device.MLNeuralEngineComputeDevice,
        }
        place = kinds.get(self._units.name, compute_device.MLCPUComputeDevice)
        if kind == "gather":
            place = compute_device.MLCPUComputeDevice
        # Their constructors ask Core ML for the device.
        return SimpleNamespace(preferred_compute_device=object.__new__(place))


@contextmanager
def core_ml_in_numpy(home: Path, *, rounded: bool = True) -> Iterator[list[FakeCompiledModel]]:
    """Have coremltools run packages here; gives the models that were loaded.

    Args:
        home: where compiled packages are kept.
        rounded: see `PackageInterpreter`.
    """

    def compile_model(package: str, destination: str) -> str:
        assert package.endswith(".mlpackage")
        assert destination.endswith(".mlmodelc")
        shutil.copytree(package, destination)
        return destination

    made: list[FakeCompiledModel] = []
    model = type("LoadedModel", (FakeCompiledModel,), {"made": made, "rounded": rounded})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coremltools.models.utils, "compile_model", compile_model)
        patch.setattr(coremltools.models, "CompiledMLModel", model)
        patch.setattr(compute_plan, "MLComputePlan", FakePlan)
        patch.setenv("EDGESDK_HOME", str(home))
        patch.setattr(devices, "DEVICES", tuple(_here(each) for each in devices.DEVICES))
        yield made


def _here(record: DeviceRecord) -> DeviceRecord:
    if record.device != "coreml":
        return record
    return replace(record, isolated=False, platforms=(), probe=f"{__name__}:ready")


def ready(record: DeviceRecord) -> DeviceProbe:
    return DeviceProbe("ready", f"{record.package}; macOS 15.0")
