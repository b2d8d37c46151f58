"""What this device and this process have, as the system tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesdk.system import resources
from edgesdk.system.resources import double_counted_bytes


def test_the_pages_of_a_process_are_walked_when_its_shared_memory_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each receipt asks, and the walk takes the longer the more memory there is."""
    sizes, walks = {"RssShmem": 300, "Pss_Shmem": 100}, []

    def field(path: Path, name: str) -> int:
        walks.extend([name] if path.name == "smaps_rollup" else [])
        return sizes[name]

    monkeypatch.setattr(resources, "_field", field)
    resources._counted_once.cache_clear()
    assert [double_counted_bytes() for _ in range(5)] == [200] * 5
    assert len(walks) == 1
    sizes.update(RssShmem=600, Pss_Shmem=150)
    assert double_counted_bytes() == 450
    resources._counted_once.cache_clear()
