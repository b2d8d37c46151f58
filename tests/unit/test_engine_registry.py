from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.fake_engine import FakeEngine

from edgesdk.bundle.manifest import Manifest
from edgesdk.bundle.opening import Bundle
from edgesdk.cli import run
from edgesdk.cli.doctor import DoctorCheck, run_checks
from edgesdk.engines import devices
from edgesdk.engines.base import Engine, LoadSettings
from edgesdk.engines.devices import DeviceOption, DeviceProbe, DeviceRecord, GraphSupport
from edgesdk.engines.discovery import probe
from edgesdk.engines.gguf import library
from edgesdk.engines.registry import (
    device_names,
    footprint,
    open_engine,
)
from edgesdk.errors import EngineError, InvalidOption, MissingExtra
from edgesdk.store import Store


def bundle(target: str = "cpu", model_format: str = "onnx") -> Bundle:
    """An opened bundle of which nothing is known but that."""
    manifest = Manifest.model_construct(format=model_format, target=target)
    return Bundle(Path("tiny"), manifest, "00" * 32)


@pytest.fixture
def npu(monkeypatch: pytest.MonkeyPatch) -> DeviceRecord:
    """A provider that nobody wrote a line of code for but what is in this file."""
    record = DeviceRecord(
        name="toy-npu",
        device="toy",
        kind="npu",
        package="onnxruntime-toy",
        extra="toy",
        where="toy shops",
        isolated=False,
        probe=f"{__name__}:probe_toy",
        provider="ToyExecutionProvider",
        runs=(
            GraphSupport(
                graph="static-int8",
                format="onnx",
                opener=f"{__name__}:open_toy",
                footprint=f"{__name__}:toy_footprint",
                proof="not run",
                tests=(),
            ),
        ),
        kv_type="float16",
        concurrency=1,
        options=(
            DeviceOption("profile", str, ("burst", "saver")),
            DeviceOption("cores", int),
        ),
    )
    monkeypatch.setattr(devices, "DEVICES", (record, *devices.DEVICES))
    TOY.clear()
    TOY["state"] = "ready"
    return record


TOY: dict[str, Any] = {}


def open_toy(source: Bundle, **arguments: Any) -> Engine:
    TOY["opened"] = (source.manifest.target, arguments)
    return FakeEngine()


def toy_footprint(source: Bundle) -> str:
    return f"of {source.manifest.target}"


def probe_toy(record: DeviceRecord) -> DeviceProbe:
    return DeviceProbe(TOY["state"], f"{record.package} 1.0")


def test_a_record_is_all_that_a_provider_needs(npu: DeviceRecord) -> None:
    engine = open_engine(
        bundle("toy"), "auto", threads=3, context=9, options={"profile": "burst", "cores": 2}
    )
    assert isinstance(engine, FakeEngine)
    assert TOY["opened"] == (
        "toy",
        {
            "record": npu,
            "settings": LoadSettings("auto", 3, 9, {"profile": "burst", "cores": 2}),
        },
    )
    assert footprint(bundle("toy"), "toy") == "of toy"
    assert device_names() == [
        "toy",
        "cpu",
        "qualcomm",
        "intel",
        "apple",
        "coreml",
        "webgpu",
        "cuda",
        "windows",
        "litert",
    ]
    assert device_names("gguf") == ["cpu"]
    assert probe(npu) == DeviceProbe("ready", "onnxruntime-toy 1.0")


def test_the_command_line_shows_each_record(npu: DeviceRecord, tmp_path: Path) -> None:
    usage = CliRunner().invoke(run.command, ["--help"]).output
    assert "--device [auto|toy|cpu|qualcomm|intel|apple|coreml|webgpu|cuda|windows|litert]" in usage
    checks = {check.name: check for check in run_checks(Store(tmp_path))}
    assert checks["toy-npu"] == DoctorCheck("toy-npu", "ok", "onnxruntime-toy 1.0", needed=False)
    assert [name for name, check in checks.items() if check.needed] == ["onnxruntime"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"speed": 3}, "toy-npu has no option 'speed'.*It has: profile, cores"),
        ({"cores": "2"}, "'cores' of toy-npu must be int, not '2'"),
        ({"cores": True}, "'cores' of toy-npu must be int, not True"),
        ({"profile": "slow"}, "'profile' of toy-npu must be one of burst, saver; not 'slow'"),
    ],
)
def test_options_are_those_of_the_record(
    npu: DeviceRecord, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidOption, match=words):
        open_engine(bundle("toy"), options=options)
    with pytest.raises(InvalidOption, match=r"onnxruntime has no option .*It has: none"):
        open_engine(bundle(), options=options)


def test_every_record_names_what_exists() -> None:
    for record in devices.DEVICES:
        runs = [place for each in record.runs for place in (each.opener, each.footprint)]
        for place in (record.probe, *runs):
            module, _, function = place.partition(":")
            assert callable(getattr(importlib.import_module(module), function)), place
    assert len({record.name for record in devices.DEVICES}) == len(devices.DEVICES)


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
        library._library.__wrapped__()


def test_the_registry_loads_no_engine() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import edgesdk.engines.registry;"
        "heavy = {'onnxruntime', 'llama_cpp', 'onnx', 'torch'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *sys.path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
