"""Real models for the tests: from a folder that is named, or from the store."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.exported import Exported
from support.other_process import run_python

from edgesdk.hybrid.cloud import failover
from edgesdk.store import Store

# Nothing timed decides a test: a machine that is busy draws examples slowly.
settings.register_profile("edgesdk", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgesdk")

# Windows are drawn where there is no screen too.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

_EXPORT = """
import contextlib, os, re, runpy, sys
from pathlib import Path
os.environ["EDGESDK_HOME"] = sys.argv.pop(1)
with contextlib.redirect_stdout(sys.stderr):
    try:
        runpy.run_module("edgesdk", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
"""


def _find(file_name: str, store_name: str) -> Path:
    folder = os.environ.get("EDGESDK_TEST_MODELS")
    if folder is not None and (Path(folder) / file_name).is_file():
        found = Path(folder) / file_name
        return found.parent if found.suffix == ".safetensors" else found
    entry = Store().find(store_name, "checkpoint")
    if entry is not None:
        return entry.path
    pytest.skip(f"{store_name} is not here: run `edgesdk pull {store_name}` or `make test`")


# Session fixtures that take minutes: one process makes each, and runs the tests that want it.
_HEAVY = ("qwen_coder_int4",)


def pytest_configure() -> None:
    """Give each worker processors of its own: engines spin, and two would take turns at it."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not worker or not hasattr(os, "sched_setaffinity"):
        return
    processors = sorted(os.sched_getaffinity(0))
    own = processors[int(worker[2:]) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    if own:
        os.sched_setaffinity(0, own)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share a fixture in one process, and begin with those that take longest."""

    def heavy(item: pytest.Item) -> str | None:
        names: tuple[str, ...] = getattr(item, "fixturenames", ())
        return next((name for name in _HEAVY if name in names), None)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(heavy(item) or str(item.path)))
    items.sort(key=lambda item: heavy(item) is None)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, GGUF Q4_1."""
    return _find("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct")


@pytest.fixture(scope="session")
def qwen_coder_gguf() -> Path:
    """Qwen2.5-Coder-1.5B-Instruct, GGUF Q4_K_M."""
    return _find("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", "qwen2.5-coder-1.5b-instruct")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, safetensors with the files of sentence-transformers."""
    return _find("all-minilm-l6-v2/model.safetensors", "all-minilm-l6-v2")


@pytest.fixture(scope="session")
def qwen_coder_int4(
    qwen_coder_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exported]:
    """Qwen2.5-Coder-1.5B-Instruct, ONNX in 4 bits, exported once by `edgesdk export`: minutes."""
    if sys.platform != "linux":
        pytest.skip("peak memory is read from /proc")
    folder = tmp_path_factory.mktemp("qwen")
    peak = run_python(
        _EXPORT,
        str(folder / "home"),
        *("export", str(qwen_coder_gguf), "--name", "qwen", "--output", str(folder / "qwen")),
        *("--quality-tokens", "512"),
        timeout=1_800,
    )
    yield Exported(folder / "qwen", peak)
    # More than a gigabyte, which pytest would keep for the next sessions.
    shutil.rmtree(folder / "qwen")


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts at a cloud follow one another at once."""
    monkeypatch.setattr(failover, "_FIRST_PAUSE", 0.01)
