"""A provider that crashes, hangs or talks takes no app down."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import edgesdk
from edgesdk.bundle.manifest import Manifest
from edgesdk.bundle.opening import Bundle
from edgesdk.engines import devices, discovery
from edgesdk.engines.devices import DeviceProbe, DeviceRecord
from edgesdk.engines.discovery import probe
from edgesdk.engines.selection import select
from edgesdk.errors import DeviceUnavailable

pytestmark = pytest.mark.e2e

# The module is a provider's package, and the probe is in it.
BROKEN_PACKAGE = """
import os, sys, time
from edgesdk.engines.devices import DeviceProbe

def crash(record): os.abort()
def hang(record): time.sleep(600)
def leave(record): os._exit(3)
def fail(record): raise OSError("libtoy.so.2: cannot open shared object file")
def talk(record):
    print("toy driver 1.0", flush=True)
    print("toy driver: no licence", file=sys.stderr)
    return DeviceProbe("ready", "a toy")
"""


@pytest.fixture
def toy_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "edgesdk_toy_provider.py").write_text(BROKEN_PACKAGE)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    importlib.invalidate_caches()


def toy_record(function: str) -> DeviceRecord:
    return DeviceRecord(
        name=f"Toy NPU that may {function}",
        device="toy",
        kind="npu",
        package="edgesdk-toy",
        module="edgesdk_toy_provider",
        probe=f"edgesdk_toy_provider:{function}",
        where="toy shops",
    )


@pytest.mark.usefixtures("toy_package")
@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("crash", "it crashed (SIGABRT)"),
        ("hang", "it did not answer within 1 s"),
        ("leave", "its probe ended with exit code 3"),
        ("fail", "OSError: libtoy.so.2: cannot open shared object file"),
    ],
)
def test_a_broken_provider_is_a_finding(
    function: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if function == "hang":
        monkeypatch.setattr(discovery, "_TIMEOUT_SECONDS", 1.0)
    found = probe(toy_record(function))
    assert (found.state, found.found) == ("broken", words)
    assert found.advice == "Run: pip install --force-reinstall edgesdk-toy"


@pytest.mark.usefixtures("toy_package")
def test_a_driver_may_talk() -> None:
    assert probe(toy_record("talk")) == DeviceProbe("ready", "a toy")


def test_a_package_that_is_absent_costs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    found = probe(toy_record("crash"))
    assert found == DeviceProbe("not installed", "for toy shops", "Run: pip install edgesdk-toy")


@pytest.mark.usefixtures("toy_package")
def test_one_broken_provider_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "DEVICES", (toy_record("crash"), *devices.DEVICES))
    found = {device.name: device for device in edgesdk.devices()}
    assert found["Toy NPU that may crash"].state == "broken"
    assert not found["Toy NPU that may crash"].runs_models
    assert found["onnxruntime"].state == "ready"
    assert found["onnxruntime"].runs_models
    assert found["llama-cpp-python"].state == "ready"


@pytest.mark.usefixtures("toy_package")
@pytest.mark.parametrize(
    ("function", "words"), [("crash", "it crashed"), ("hang", "it did not answer within 1 s")]
)
def test_a_broken_provider_is_passed_over_or_refused_by_name(
    function: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_TIMEOUT_SECONDS", 1.0)
    host = devices.DEVICES[0]
    toy = replace(toy_record(function), name=f"Toy GPU that may {function}", runs=host.runs[:1])
    monkeypatch.setattr(devices, "DEVICES", (host, toy))
    bundle = Bundle(Path("x"), Manifest.model_construct(format="onnx", target="cpu"), "00" * 32)
    assert [each.record for each in select(bundle).candidates] == [host]
    with pytest.raises(DeviceUnavailable, match=words) as raised:
        select(bundle, "toy")
    assert raised.value.hint == "Run: pip install --force-reinstall edgesdk-toy"
    fallback = select(bundle, "toy", allow_fallback=True)
    assert [each.record for each in fallback.candidates] == [host]
    assert words in fallback.passed_over[0]
