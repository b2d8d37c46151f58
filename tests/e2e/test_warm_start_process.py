"""A model that is compiled in a process of its own while the CPU answers."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from support.fake_engine import fake_model

from edgesdk import warm_start
from edgesdk.engines.npu.compile_worker import MARK, CompileOrder
from edgesdk.runtime import Runtime
from edgesdk.warm_start import WarmStart

pytestmark = pytest.mark.e2e

ORDER = CompileOrder("bundle", "npu", 1, None, {})


def working(
    code: str, monkeypatch: pytest.MonkeyPatch, opened: Callable[[], Runtime] | None = None
) -> WarmStart:
    """A warm start whose process runs that code."""
    monkeypatch.setattr(warm_start, "CODE", f"import json, sys, time\nMARK = {MARK!r}\n{code}")
    made = WarmStart(ORDER, opened or (lambda: fake_model().runtime))
    made.start()
    return made


def test_it_compiles_then_loads_then_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
print("a library's own words")
assert json.loads(sys.argv[2]) == {"bundle": "bundle", "device": "npu", "threads": 1,
    "context": None, "options": {}}
for done in range(3):
    print(MARK + json.dumps({"done": done, "of": 2}), flush=True)
"""
    made = working(code, monkeypatch)
    assert made.wait(30)
    assert (made.state, made.progress, made.error) == ("ready", (2, 2), None)
    assert made.take() is not None


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ('print(MARK + json.dumps({"error": "two nodes are left"})); sys.exit(1)', "two nodes"),
        ('raise SystemExit("libQnn.so is not there")', "libQnn.so is not there"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it crashed (SIGSEGV)"),
    ],
)
def test_where_it_fails_the_cpu_goes_on(code, why, monkeypatch, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        made = working(code, monkeypatch)
        assert made.wait(30)
    assert made.state == "failed"
    assert why in str(made.error)
    assert "the CPU goes on answering" in caplog.text
    assert made.take() is None


def test_where_the_device_does_not_load_the_cpu_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Runtime:
        raise RuntimeError("the device is gone")

    made = working("", monkeypatch, refuse)
    assert made.wait(30)
    assert (made.state, str(made.error)) == ("failed", "the device is gone")


def test_closing_ends_the_compiling(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("EDGESDK_HOME", str(tmp_path))
    code = 'print(MARK + json.dumps({"done": 1, "of": 2}), flush=True); time.sleep(600)'
    made = working(code, monkeypatch)
    while made.progress != (1, 2):
        time.sleep(0.01)
    made.close()
    assert (made.state, made.take()) == ("closed", None)
    assert made.error is None
    process = made._process
    assert process is not None
    assert process.poll() is not None
    made.close()


def test_a_compiler_ends_with_the_process_that_began_it() -> None:
    code = """
import sys, threading, time
from edgesdk.engines.npu import compile_worker
compile_worker.open_bundle = lambda path: time.sleep(600)
compile_worker.compile_order(sys.argv[1])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, ORDER.to_json()], stdin=subprocess.PIPE, text=True
    )
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 1
    assert json.loads(ORDER.to_json())["device"] == "npu"
