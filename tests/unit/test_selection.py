"""Which providers may run a model: what was asked for, or a reason why not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.fake_engine import FakeEngine

from edgesdk.bundle.manifest import BundleFormat, Manifest
from edgesdk.bundle.opening import Bundle
from edgesdk.engines import devices, selection
from edgesdk.engines.base import Engine, LoadSettings
from edgesdk.engines.devices import DeviceOption, DeviceProbe, DeviceRecord, GraphSupport, Kind
from edgesdk.engines.registry import footprint, open_engine
from edgesdk.engines.selection import select
from edgesdk.errors import DeviceUnavailable, EngineError, InvalidOption, UnsupportedBundle

STATIC, FUSED = "static", devices.FUSED_OPERATORS
SETTINGS: list[tuple[str, LoadSettings]] = []


def bundle(target: str = "cpu", model_format: BundleFormat = "onnx") -> Bundle:
    """An opened bundle of which nothing is known but that, and its checkpoint's name."""
    source = SimpleNamespace(name="tiny-llama")
    manifest = Manifest.model_construct(format=model_format, target=target, source=source)
    return Bundle(Path("tiny"), manifest, "00" * 32)


def provider(name: str, kind: Kind, *graphs: str) -> DeviceRecord:
    return DeviceRecord(
        name=name.title(),
        device=name,
        kind=kind,
        package=f"onnxruntime-{name}",
        where=f"{name} boards",
        probe="unused:unused",
        options=(DeviceOption("cores", int),),
        runs=tuple(
            GraphSupport(
                graph, "onnx", f"{__name__}:open_toy", f"{__name__}:measure", "not run", ()
            )
            for graph in graphs
        ),
    )


def open_toy(source: Bundle, *, record: DeviceRecord, settings: LoadSettings) -> Engine:
    SETTINGS.append((record.device, settings))
    if record.device == "gone":
        raise DeviceUnavailable("Gone lists no device here.", hint="See: edgesdk doctor")
    return FakeEngine()


def measure(source: Bundle) -> str:
    return "a footprint"


HOST = provider("host", "cpu", FUSED, STATIC)
NPU = provider("toy", "npu", STATIC)
GPU = provider("shader", "gpu", FUSED)
Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make these the known providers; `states` says what their probes find, "ready" if nothing."""
    SETTINGS.clear()

    def install(*records: DeviceRecord, **states: str) -> None:
        def probe(record: DeviceRecord) -> DeviceProbe:
            advice = {"not installed": f"Run: pip install {record.package}"}
            state = states.get(record.device, "ready")
            return DeviceProbe(state, "1.0", advice.get(state))  # type: ignore[arg-type]

        monkeypatch.setattr(devices, "DEVICES", records)
        monkeypatch.setattr(selection, "probe", probe)

    return install


def chosen(source: Bundle, device: str = "auto", **arguments: bool) -> list[str]:
    return [each.record.device for each in select(source, device, **arguments).candidates]


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize("model_format", ["onnx", "gguf"])
def test_both_formats_run_on_the_cpu(model_format: BundleFormat, device: str) -> None:
    records = [each.record for each in select(bundle("cpu", model_format), device).candidates]
    assert (records[0].device, records[0].kind) == ("cpu", "cpu")


def test_a_bare_gguf_needs_no_target() -> None:
    assert select(Path("model.GGUF")).candidates[0].support.format == "gguf"


def test_auto_takes_hardware_only(install: Install) -> None:
    install(HOST, GPU)
    assert chosen(bundle("host")) == ["host", "shader"]
    for state in ("software", "virtual", "no device", "broken", "not installed"):
        install(HOST, GPU, shader=state)
        assert chosen(bundle("host")) == ["host"], state


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("software", r"Shader: it runs in software here \(1.0\); device='shader' takes it"),
        ("virtual", r"Shader: it only compiles here"),
        ("no device", r"Shader: it finds no device"),
        ("broken", r"Shader: it does not work"),
        ("not installed", r"it is not installed .*Run: pip install onnxruntime-shader"),
    ],
)
def test_a_kind_gives_hardware_of_that_kind_or_the_reason(
    install: Install, state: str, words: str
) -> None:
    install(HOST, GPU)
    assert chosen(bundle("host"), "gpu") == ["shader"]
    install(HOST, GPU, shader=state)
    with pytest.raises(DeviceUnavailable, match=f"tiny cannot run on the device 'gpu'.*{words}"):
        select(bundle("host"), "gpu")


def test_a_provider_of_several_kinds_is_asked_which_it_found(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = replace(NPU, also=("gpu",))
    install(HOST, both)
    found = DeviceProbe("ready", "1.0", kinds=("gpu",))
    monkeypatch.setattr(selection, "probe", lambda record: found)
    assert chosen(bundle("toy"), "gpu") == ["toy"]
    with pytest.raises(DeviceUnavailable, match="Toy: it finds no NPU"):
        select(bundle("toy"), "npu")


def test_a_simulator_is_taken_by_its_name(install: Install) -> None:
    install(HOST, NPU, toy="software")
    assert chosen(bundle("toy"), "toy") == ["toy"]
    assert chosen(bundle("toy")) == ["host"]
    with pytest.raises(DeviceUnavailable):
        select(bundle("toy"), "npu")


def test_nothing_falls_back_unless_it_may(install: Install) -> None:
    install(HOST, NPU, toy="broken")
    with pytest.raises(DeviceUnavailable, match="Toy: it does not work"):
        open_engine(bundle("toy"), "toy", options={"cores": 2})
    assert SETTINGS == []
    open_engine(bundle("toy"), "toy", options={"cores": 2}, allow_fallback=True)
    device, settings = SETTINGS.pop()
    assert device == "host"
    assert settings.requested_device == "toy"
    assert settings.options == {}, "they are the NPU's"
    assert "cannot run on the device 'toy'. Toy: it does not work" in settings.passed_over[0]


def test_a_fallback_also_covers_a_bundle_that_was_made_for_another_device(install: Install) -> None:
    install(HOST, NPU, GPU)
    assert chosen(bundle("shader"), "toy", allow_fallback=True) == ["host", "shader"]


def test_a_device_that_disappears_between_probe_and_load(install: Install) -> None:
    gone = provider("gone", "gpu", FUSED)
    install(gone, HOST)
    with pytest.raises(DeviceUnavailable, match="Gone lists no device here"):
        open_engine(bundle("gone"), "gone")
    open_engine(bundle("gone"), "gone", allow_fallback=True)
    device, settings = SETTINGS[-1]
    assert (device, settings.passed_over) == ("host", ("Gone: Gone lists no device here.",))


def test_a_bundle_for_another_target_says_where_it_runs_and_how_to_export_it(
    install: Install,
) -> None:
    install(HOST, NPU, GPU)
    with pytest.raises(InvalidOption, match="exported for 'shader', on the device 'toy'") as raised:
        select(bundle("shader"), "toy")
    assert raised.value.hint == (
        "Choose from: auto, host, shader. Or export it for that device: edgesdk export tiny-llama"
        " --target toy"
    )
    with pytest.raises(InvalidOption, match="on the device 'npu'") as raised:
        select(bundle("shader"), "npu")
    assert str(raised.value).endswith("edgesdk export tiny-llama --target npu")
    with pytest.raises(UnsupportedBundle, match="exported for the device 'tpu'"):
        select(bundle("tpu"))


def test_a_kind_is_a_target(install: Install) -> None:
    install(HOST, NPU)
    assert chosen(bundle("npu"), "toy") == ["toy"]


def test_a_device_that_is_not_known_or_has_no_engine() -> None:
    with pytest.raises(InvalidOption, match=r"There is no device 'tpu'.*auto, cpu"):
        select(bundle(), "tpu")
    with pytest.raises(InvalidOption, match="no engine yet for Hailo"):
        select(bundle(), "hailo")


def test_hardware_of_another_system_is_not_probed(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(HOST, replace(GPU, platforms=("another",)))
    assert chosen(bundle("host")) == ["host"]
    with pytest.raises(DeviceUnavailable, match="Shader: it is for shader boards"):
        select(bundle("host"), "gpu")
    install(HOST, replace(GPU, platforms=(sys.platform,)))
    assert chosen(bundle("host"), "gpu") == ["shader"]


def test_a_plan_looks_for_no_device(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(HOST, NPU)

    def probe(record: DeviceRecord) -> DeviceProbe:
        raise AssertionError("a plan probed")

    monkeypatch.setattr(selection, "probe", probe)
    assert str(footprint(bundle("toy"), "toy")) == "a footprint"
    assert str(footprint(bundle("toy"))) == "a footprint"


def test_a_lone_cpu_engine_is_not_probed(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(HOST)
    monkeypatch.setattr(selection, "probe", None)
    assert chosen(bundle("host")) == ["host"]


def test_options_filter_what_auto_takes(install: Install) -> None:
    install(replace(HOST, options=()), GPU)
    open_engine(bundle("host"), options={"cores": 3})
    assert [(device, each.options) for device, each in SETTINGS] == [("shader", {"cores": 3})]
    with pytest.raises(InvalidOption, match="Host has no option 'speed'"):
        open_engine(bundle("host"), options={"speed": 3})


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"neither an opened bundle nor a \.gguf file"):
        select(tmp_path / "model.bin")
