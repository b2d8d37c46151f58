"""A server of files, and a store that is empty."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from range_server import RangeServer, serving

from edgesdk.store import Store, transfer


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with serving() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Further tries come at once."""
    monkeypatch.setattr(transfer, "_DELAYS", (0.0, 0.0, 0.0))


@pytest.fixture
def documented_store(smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of its own with SmolLM2 in it, as it is after the first lines of README and docs."""
    entry = Store().find("smollm2-135m-instruct", "checkpoint")
    if entry is None:
        pytest.skip(f"{smollm2_gguf} is not in the store: `edgesdk pull smollm2-135m-instruct`")
    home = tmp_path / "home"
    shutil.copytree(entry.path.parent, home / "checkpoints" / entry.name)
    monkeypatch.setenv("EDGESDK_HOME", str(home))
    return home
