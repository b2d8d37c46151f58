"""What the fixtures that export share between the processes of one test run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock


@dataclass(frozen=True)
class Exported:
    """A bundle, and the peak resident memory in bytes of the process that exported it."""

    path: Path
    peak: int


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder that all processes of this test run see; pytest removes it with its own."""
    base = factory.getbasetemp()
    # A worker of pytest-xdist has a folder of its own in the run's.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The path that `make` made, in this process or another; `make` must leave it whole or not."""
    path = shared_folder(factory) / name
    with FileLock(f"{path}.lock"):
        if not path.exists():
            make(path)
    return path
