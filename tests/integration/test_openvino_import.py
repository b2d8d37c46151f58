"""OpenVINO calls nobody when edgesdk imports it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
    ),
]

# Sockets are refused before anything leaves, in whichever thread or process of Python's.
SCRIPT = """
import os, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print("called:", event, arguments, flush=True)
        os._exit(1)
sys.addaudithook(refuse)
{load}
print("loaded", openvino.Core().available_devices)
"""
OURS = "from edgesdk.engines.openvino.library import load_openvino; openvino = load_openvino()"


def loaded(load: str, home: Path) -> subprocess.CompletedProcess[str]:
    # What runs in CI is left out of its statistics by OpenVINO itself.
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(load=load)],
        env={**kept, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_openvino_calls_nobody_and_leaves_no_identifier(tmp_path: Path) -> None:
    done = loaded(OURS, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("loaded ['CPU'")
    assert list(tmp_path.iterdir()) == []


def test_that_would_be_seen(tmp_path: Path) -> None:
    """The package by itself does, so that the test above can fail."""
    importlib.metadata.version("openvino-telemetry")
    loaded("import openvino", tmp_path)
    assert list(tmp_path.rglob("openvino_ga_cid")) != []
