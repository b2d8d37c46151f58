"""What a server knows of a model before it loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.untrained_gguf import write_untrained_gguf

import edgesdk
from edgesdk.server.model_sources import StoreModels
from edgesdk.store import Store


@pytest.mark.parametrize(("context", "planned"), [(None, 512), (64, 64), (10**9, 512)])
def test_the_memory_of_a_file_is_that_of_its_plan(
    tmp_path: Path, context: int | None, planned: int
) -> None:
    path = write_untrained_gguf(tmp_path / "tiny.gguf")
    models = StoreModels([str(path)], store=Store(tmp_path / "store"), context=context)
    need = edgesdk.plan(path, context=planned).need
    assert models.memory("tiny") == need.runtime + need.weights + need.kv_cache + need.scratch
    assert models.memory("tiny") > path.stat().st_size
