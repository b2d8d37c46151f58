"""The fastest of several devices is measured once, kept and shown; and anew when they change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.fake_engine import FakeEngine

from edgesdk.bundle.manifest import Manifest
from edgesdk.bundle.opening import Bundle
from edgesdk.cli.doctor import run_checks
from edgesdk.engines import device_choice, devices, registry, selection
from edgesdk.engines.base import Engine, LoadSettings, Placement
from edgesdk.engines.device_choice import kept_choices, measure_engine
from edgesdk.engines.devices import DeviceProbe, DeviceRecord, GraphSupport, Kind
from edgesdk.engines.registry import open_engine
from edgesdk.errors import DeviceUnavailable, EngineError
from edgesdk.store import Store

BUNDLE = Bundle(
    Path("tiny"),
    Manifest.model_construct(
        format="onnx", target="host", name="tiny", source=SimpleNamespace(name="tiny"), files=()
    ),
    "11" * 32,
)


class Machine:
    """Devices with speeds: what each has been asked, in order.

    Attributes:
        seconds: of a token of prefill and of decode, by device.
        versions: of each device's provider.
    """

    def __init__(self) -> None:
        self.seconds = {"host": (0.010, 0.030), "shader": (0.001, 0.010), "slow": (0.5, 0.5)}
        self.versions = dict.fromkeys(self.seconds, "1.0")
        self.states = dict.fromkeys(self.seconds, "ready")
        self.opened: list[str] = []
        self.failing: dict[str, BaseException] = {}
        self.measured: list[str] = []

    def probe(self, record: DeviceRecord) -> DeviceProbe:
        state = self.states[record.device]
        return DeviceProbe(state, self.versions[record.device])  # type: ignore[arg-type]

    def open(self, source: Bundle, record: DeviceRecord, settings: LoadSettings) -> Engine:
        self.opened.append(record.device)
        if record.device in self.failing:
            raise self.failing[record.device]
        engine = FakeEngine()
        placement = Placement(record.device, passed_over=settings.passed_over)
        engine.info = replace(engine.info, placement=placement)
        return engine

    def measure(self, engine: Engine) -> tuple[float, float]:
        self.measured.append(engine.info.device)
        return self.seconds[engine.info.device]

    def load(self, device: str = "auto", **arguments: bool) -> Placement:
        self.opened.clear()
        self.measured.clear()
        return open_engine(BUNDLE, device, threads=2, **arguments).info.placement


MACHINE: list[Machine] = []


def join_toys(prefill: Engine, decode: Engine) -> Engine:
    engine = FakeEngine()
    engine.info = replace(
        engine.info, placement=replace(decode.info.placement, prefill=prefill.info.device)
    )
    return engine


def open_toy(source: Bundle, *, record: DeviceRecord, settings: LoadSettings) -> Engine:
    return MACHINE[0].open(source, record, settings)


def provider(name: str, kind: Kind) -> DeviceRecord:
    support = GraphSupport(
        graph="fused",
        format="onnx",
        opener=f"{__name__}:open_toy",
        footprint="unused:unused",
        proof="not run",
        tests=(),
        joiner=f"{__name__}:join_toys",
    )
    return DeviceRecord(
        name=name.title(),
        device=name,
        kind=kind,
        package=name,
        where=name,
        probe="unused:unused",
        runs=(support,),
    )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine()
    records = provider("host", "cpu"), provider("shader", "gpu"), provider("slow", "npu")
    monkeypatch.setenv("EDGESDK_HOME", str(tmp_path))
    monkeypatch.setattr(devices, "DEVICES", records)
    monkeypatch.setattr(selection, "probe", made.probe)
    monkeypatch.setattr(device_choice, "measure_engine", made.measure)
    MACHINE[:] = [made]
    yield made
    MACHINE.clear()


def test_the_fastest_is_measured_once(machine: Machine) -> None:
    placement = machine.load()
    assert machine.measured == ["host", "shader", "slow"]
    assert placement.device == "shader"
    assert placement.passed_over == (
        "Host: 4.48 s for 256 tokens in and 64 out, which is slower",
        "Slow: 160.00 s for 256 tokens in and 64 out, which is slower",
    )
    assert machine.load() == placement
    assert (machine.measured, machine.opened) == ([], ["shader"])


def test_another_set_of_devices_is_measured_anew(machine: Machine) -> None:
    machine.load()
    machine.seconds["shader"] = (9.0, 9.0)
    assert machine.load().device == "shader"
    machine.versions["shader"] = "2.0"
    assert machine.load().device == "host"
    machine.states["host"] = "software"
    assert machine.load().device == "slow"
    assert machine.measured == ["shader", "slow"]


def test_one_device_needs_no_measurement(machine: Machine) -> None:
    machine.states |= {"shader": "software", "slow": "not installed"}
    assert machine.load().device == "host"
    assert machine.load("shader").device == "shader"
    assert machine.measured == []
    assert list(kept_choices()) == []


@pytest.mark.parametrize(
    ("host", "shader", "prefill", "decode"),
    [
        ((0.010, 0.010), (0.001, 0.040), "shader", "host"),
        ((0.001, 0.040), (0.010, 0.010), "host", "shader"),
        # The gain of a second device is less than a fifth.
        ((0.010, 0.010), (0.008, 0.020), "", "host"),
        ((0.010, 0.030), (0.001, 0.010), "", "shader"),
    ],
)
def test_two_devices_share_the_work_where_that_is_worth_it(
    machine: Machine,
    host: tuple[float, float],
    shader: tuple[float, float],
    prefill: str,
    decode: str,
) -> None:
    machine.seconds |= {"host": host, "shader": shader}
    placement = machine.load()
    assert (placement.prefill, placement.device) == (prefill, decode)
    assert machine.load("gpu").prefill == ""


def test_two_devices_of_which_one_is_gone(machine: Machine) -> None:
    machine.seconds |= {"host": (0.010, 0.010), "shader": (0.001, 0.040)}
    machine.load()
    machine.failing["shader"] = DeviceUnavailable("Shader lists no device here.")
    placement = machine.load()
    assert (placement.prefill, placement.device) == ("", "host")
    assert "two devices together: Shader lists no device here." in placement.passed_over


def test_two_devices_need_room_for_the_model_twice(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.seconds |= {"host": (0.010, 0.010), "shader": (0.001, 0.040)}
    monkeypatch.setattr(registry, "available_bytes", lambda: 0)
    assert machine.load().prefill == ""


def test_a_kind_is_not_left_for_a_faster_device(machine: Machine) -> None:
    assert machine.load("npu", allow_fallback=True).device == "slow"
    assert machine.measured == []


def test_a_device_that_cannot_load_the_model_is_passed_over(machine: Machine) -> None:
    machine.failing["shader"] = EngineError("Shader has 1 GB.", hint="Take a smaller model.")
    placement = machine.load()
    assert placement.device == "host"
    assert placement.passed_over[-1] == "Shader: Shader has 1 GB."
    machine.load()
    assert machine.opened == ["host"], "what failed is not tried each time"


def test_a_device_that_is_gone_after_it_was_measured(machine: Machine) -> None:
    machine.load()
    machine.failing["shader"] = DeviceUnavailable("Shader lists no device here.")
    placement = machine.load()
    assert placement.device == "host"
    assert "Shader: Shader lists no device here." in placement.passed_over


def test_a_driver_that_ends_the_process_is_measured_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files: dict[str, bytes] = {}

    def measure(engine: Engine) -> tuple[float, float]:
        (path,) = (tmp_path / "device-choices").iterdir()
        files[engine.info.device] = path.read_bytes()
        return machine.measure(engine)

    monkeypatch.setattr(device_choice, "measure_engine", measure)
    machine.load()
    # As it is where the process is killed while the shader is measured.
    (path,) = (tmp_path / "device-choices").iterdir()
    path.write_bytes(files["shader"])
    placement = machine.load()
    assert placement.device == "host"
    assert machine.measured == ["slow"]
    assert "Shader: the process ended while it was measured" in placement.passed_over


def test_who_stops_a_measurement_speaks_against_no_device(machine: Machine) -> None:
    machine.failing["shader"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        machine.load()
    machine.failing.clear()
    assert machine.load().device == "shader"
    assert machine.measured == ["shader", "slow"]


def test_a_damaged_choice_is_measured_anew(machine: Machine, tmp_path: Path) -> None:
    machine.load()
    (path,) = (tmp_path / "device-choices").iterdir()
    for text in (b"", b"{}", b'{"model": 3}', b"\xff"):
        path.write_bytes(text)
        assert machine.load().device == "shader"
        assert machine.measured == ["host", "shader", "slow"]


def test_a_folder_that_cannot_be_written_costs_the_choice_only(
    machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "device-choices").write_text("a file")
    assert machine.load().device == "shader"
    assert machine.load().device == "shader"
    assert machine.measured == ["host", "shader", "slow"]


def test_doctor_shows_what_was_chosen(machine: Machine, tmp_path: Path) -> None:
    machine.load()
    (check,) = [each for each in run_checks(Store(tmp_path)) if each.name == "auto"]
    assert check.found.startswith("tiny runs on shader: Shader: 0.90 s for 256 tokens in")


def test_a_measurement_times_what_was_done_before() -> None:
    ticks = count()
    engine = FakeEngine()
    prefill, decode = measure_engine(engine, clock=lambda: float(next(ticks)))
    assert engine.states[0].extended == [32, *[1] * 8, 32, *[1] * 8]
    assert (prefill, decode) == (1 / 32, 1 / 8)
    assert engine.states[0].closed
    short = FakeEngine(context_length=3)
    measure_engine(short)
    assert short.states[0].extended == [1, 1, 1, 1, 1, 1]
