from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
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
from edgesdk.engines.base import Engine
from edgesdk.engines.devices import DeviceOption, DeviceProbe, DeviceRecord
from edgesdk.engines.discovery import probe
from edgesdk.engines.gguf.library import load_library
from edgesdk.engines.registry import (
    choose_device,
    device_names,
    footprint,
    open_engine,
)
from edgesdk.errors import EngineError, InvalidOption, MissingExtra, UnsupportedBundle
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
        formats=("onnx",),
        package="onnxruntime-toy",
        extra="toy",
        where="toy shops",
        isolated=False,
        opener=f"{__name__}:open_toy",
        footprint=f"{__name__}:toy_footprint",
        probe=f"{__name__}:probe_toy",
        provider="ToyExecutionProvider",
        graph="static-int8",
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


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize("model_format", ["onnx", "gguf"])
def test_both_formats_run_on_the_cpu(model_format: str, device: str) -> None:
    record = choose_device(bundle(model_format=model_format), device)
    assert model_format in record.formats
    assert (record.device, record.kind) == ("cpu", "cpu")


def test_a_bare_gguf_needs_no_target() -> None:
    assert choose_device(Path("model.GGUF")).formats == ("gguf",)


def test_a_record_is_all_that_a_provider_needs(npu: DeviceRecord) -> None:
    engine = open_engine(
        bundle("toy"), "auto", threads=3, context=9, options={"profile": "burst", "cores": 2}
    )
    assert isinstance(engine, FakeEngine)
    assert TOY["opened"] == (
        "toy",
        {
            "record": npu,
            "requested_device": "auto",
            "threads": 3,
            "context": 9,
            "options": {"profile": "burst", "cores": 2},
        },
    )
    assert footprint(bundle("toy"), "toy") == "of toy"
    assert device_names() == ["toy", "cpu", "apple"]
    assert device_names("gguf") == ["cpu"]
    assert probe(npu) == DeviceProbe("ready", "onnxruntime-toy 1.0")


def test_the_command_line_shows_each_record(npu: DeviceRecord, tmp_path: Path) -> None:
    usage = CliRunner().invoke(run.command, ["--help"]).output
    assert "--device [auto|toy|cpu|apple]" in usage
    checks = {check.name: check for check in run_checks(Store(tmp_path))}
    assert checks["toy-npu"] == DoctorCheck("toy-npu", "ok", "onnxruntime-toy 1.0", needed=False)
    assert checks["onnxruntime"].needed


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


def test_auto_takes_the_first_that_works(
    npu: DeviceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = replace(npu, name="toy-2", device="toy-2")
    monkeypatch.setattr(devices, "DEVICES", (*devices.DEVICES, twin))
    assert choose_device(bundle("toy")) is npu
    assert choose_device(bundle("toy"), "npu") is npu
    assert choose_device(bundle("toy"), "toy-2") is twin
    TOY["state"] = "broken"
    assert choose_device(bundle("toy")) is twin
    # Who asks for a device gets it, and is told by its engine what is missing.
    assert choose_device(bundle("toy"), "toy") is npu


def test_a_graph_runs_only_where_it_was_made_for(npu: DeviceRecord) -> None:
    with pytest.raises(InvalidOption, match=r"this onnx model on the device 'cpu'.*: auto, toy\."):
        choose_device(bundle("toy"), "cpu")
    with pytest.raises(InvalidOption, match=r"the device 'toy'.*: auto, cpu, apple\."):
        choose_device(bundle("cpu"), "toy")
    with pytest.raises(InvalidOption, match=r"gguf model on the device 'toy'.*: auto, cpu\."):
        choose_device(bundle(model_format="gguf"), "toy")
    with pytest.raises(UnsupportedBundle, match="exported for the device 'tpu'"):
        choose_device(bundle("tpu"))


def test_a_device_without_an_engine_is_refused_with_what_is_known_of_it() -> None:
    with pytest.raises(
        InvalidOption, match=r"the device 'hailo'.*Hailo \(not installed\)"
    ) as raised:
        choose_device(bundle(), "hailo")
    assert raised.value.hint == "Choose from: auto, cpu, apple."
    with pytest.raises(InvalidOption, match=r"no engine yet for .*Hailo \(not installed\)"):
        choose_device(bundle(), "npu")
    assert "hailo" not in device_names()


def test_every_record_names_what_exists() -> None:
    for record in devices.DEVICES:
        runs = (record.opener, record.footprint) if record.formats else ()
        assert bool(record.graph) == bool(record.formats), record.name
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
        load_library.__wrapped__()


def test_the_registry_loads_no_engine() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import edgesdk.engines.registry;"
        "heavy = {'onnxruntime', 'llama_cpp', 'onnx', 'torch'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *sys.path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
