"""A server of files, and a store that is empty."""

from __future__ import annotations

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
