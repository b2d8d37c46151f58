"""A provider that crashes, hangs or talks takes no app down."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import edgesdk
from edgesdk.engines import devices, discovery
from edgesdk.engines.devices import DeviceProbe, DeviceRecord
from edgesdk.engines.discovery import probe

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
