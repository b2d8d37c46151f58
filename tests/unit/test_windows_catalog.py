"""What is made of the catalog of Windows ML; its answers are from windowsml 2.5.96, not run."""

from __future__ import annotations

from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgesdk.bundle.opening import Bundle
from edgesdk.engines import windows_catalog
from edgesdk.engines.base import LoadSettings
from edgesdk.engines.devices import DEVICES, DeviceProbe, DeviceRecord
from edgesdk.errors import DeviceUnavailable, EngineError, InvalidOption

WINDOWS = next(record for record in DEVICES if record.device == "windows")
DeviceType = Enum("DeviceType", ["CPU", "GPU", "NPU"])


class EpReadyState(IntEnum):
    Ready = 0
    NotReady = 1
    NotPresent = 2


class Provider:
    """As `windowsml.ExecutionProvider`: its library is known once it is ready."""

    version = "1.8.57.0"

    def __init__(self, name: str, *listed: tuple[str, str], state: EpReadyState) -> None:
        self.name, self.listed, self.ready_state = name, listed, state
        self.asked = 0

    @property
    def library_path(self) -> str:
        return "/ep/that.dll" if self.ready_state == EpReadyState.Ready else ""

    def ensure_ready(self) -> None:
        self.asked += 1
        self.ready_state = EpReadyState.Ready


AMD = ("NPU", "AMD")
QUALCOMM = [("NPU", "Qualcomm"), ("GPU", "Qualcomm"), ("CPU", "Qualcomm")]


@pytest.fixture
def catalog(monkeypatch: pytest.MonkeyPatch) -> list[Provider]:
    found: list[Provider] = []
    registered: list[str] = []

    def register(record: DeviceRecord, library: Path) -> None:
        if str(library) != "/ep/that.dll":
            raise DeviceUnavailable(f"The library of {record.name} does not load.")
        registered.append(str(record.provider))

    def listed(record: DeviceRecord) -> list[Any]:
        if record.provider not in registered:
            return []
        (own,) = [each for each in found if each.name == record.provider]
        return [
            SimpleNamespace(
                device=SimpleNamespace(type=DeviceType[kind], vendor=vendor, vendor_id=1),
                ep_metadata={},
            )
            for kind, vendor in own.listed
        ]

    made = SimpleNamespace(find_all_providers=lambda: found)
    monkeypatch.setattr(windows_catalog, "_catalog", lambda: made)
    monkeypatch.setattr(windows_catalog, "register", register)
    monkeypatch.setattr(windows_catalog, "listed_devices", listed)
    return found


def test_what_is_installed_is_made_ready_and_nothing_is_downloaded(catalog) -> None:
    catalog += [
        Provider("VitisAIExecutionProvider", AMD, state=EpReadyState.NotReady),
        Provider("NvTensorRTRTXExecutionProvider", state=EpReadyState.NotPresent),
    ]
    words = (
        "VitisAIExecutionProvider 1.8.57.0: NPU (AMD);"
        " NvTensorRTRTXExecutionProvider 1.8.57.0: Windows has not installed it"
    )
    assert windows_catalog.probe(WINDOWS) == DeviceProbe("ready", words, kinds=("npu",))
    assert [each.asked for each in catalog] == [1, 0]


def test_kinds_are_those_of_all_providers(catalog) -> None:
    catalog.append(Provider("MIGraphX", ("GPU", "AMD"), state=EpReadyState.Ready))
    catalog.append(Provider("QNNExecutionProvider", *QUALCOMM, state=EpReadyState.Ready))
    # For Qualcomm's, edgesdk knows what runs where: on the NPU.
    assert windows_catalog.probe(WINDOWS).kinds == ("npu", "gpu")


@pytest.mark.parametrize(
    ("providers", "words", "advice"),
    [
        ([], "the catalog has nothing for this machine", False),
        ([("A", EpReadyState.NotPresent)], "A 1.8.57.0: Windows has not installed it", True),
        ([("A", EpReadyState.Ready)], "A 1.8.57.0: it lists no device", True),
    ],
)
def test_where_nothing_can_be_used(providers, words: str, advice: bool, catalog) -> None:
    catalog += [Provider(name, state=state) for name, state in providers]
    found = windows_catalog.probe(WINDOWS)
    assert (found.state, found.found) == ("no device", words)
    assert ("ensure_ready" in (found.advice or "")) == advice


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[DeviceRecord, LoadSettings]]:
    """What was to be loaded; only Qualcomm's provider runs it."""
    calls: list[tuple[DeviceRecord, LoadSettings]] = []

    def opener(source: object, *, record: DeviceRecord, settings: LoadSettings) -> str:
        calls.append((record, settings))
        if record.provider != "QNNExecutionProvider":
            raise EngineError("It runs 3 of 9 nodes.")
        return "an engine"

    monkeypatch.setattr(windows_catalog, "_opener", lambda bundle: opener)
    return calls


def load(requested: str = "windows", **options: object) -> Any:
    bundle = object.__new__(Bundle)
    object.__setattr__(bundle, "path", Path("tiny"))
    settings = LoadSettings(requested, 2, options=options)
    return windows_catalog.open_engine(bundle, record=WINDOWS, settings=settings)


def test_npus_come_first_and_who_refuses_is_passed_over(catalog, opened) -> None:
    catalog += [
        Provider("MIGraphX", ("GPU", "AMD"), state=EpReadyState.Ready),
        Provider("VitisAIExecutionProvider", AMD, state=EpReadyState.Ready),
        Provider("QNNExecutionProvider", *QUALCOMM, state=EpReadyState.Ready),
        Provider("NvTensorRTRTXExecutionProvider", state=EpReadyState.NotPresent),
    ]
    assert load() == "an engine"
    (vitis, _), (qnn, settings) = opened
    assert vitis.provider == "VitisAIExecutionProvider"
    assert (qnn.name, qnn.device, qnn.version) == (
        "QNNExecutionProvider of Windows ML",
        "windows",
        "1.8.57.0",
    )
    assert dict(qnn.session_options)["backend_type"] == "htp"
    assert settings.passed_over == (
        "NvTensorRTRTXExecutionProvider 1.8.57.0: Windows has not installed it",
        "VitisAIExecutionProvider: It runs 3 of 9 nodes.",
    )
    opened.clear()
    with pytest.raises(DeviceUnavailable, match=r"tiny\. .*MIGraphX: It runs 3 of 9 nodes"):
        load("gpu")
    assert [record.provider for record, _ in opened] == ["MIGraphX"]


def test_a_provider_by_its_name(catalog, opened) -> None:
    catalog.append(Provider("VitisAIExecutionProvider", AMD, state=EpReadyState.Ready))
    catalog.append(Provider("QNNExecutionProvider", *QUALCOMM, state=EpReadyState.Ready))
    load(provider="QNNExecutionProvider")
    ((record, settings),) = opened
    assert (record.provider, settings.options) == ("QNNExecutionProvider", {})
    with pytest.raises(InvalidOption, match=r"no provider 'A'.*VitisAI.*, QNN"):
        load(provider="A")
