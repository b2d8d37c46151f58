"""A disk that fills up during an export: a clear error, no bundle, and room for the next try."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.recipes import load_recipe
from support.small_disk import grow, small_disk
from support.tiny_models import make_tiny

from edgesdk.bundle.opening import verify_bundle
from edgesdk.errors import ExportError

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("form", "recipe"), [("onnx", "fast"), ("onnx", "balanced"), ("gguf", "fast")]
)
def test_a_disk_that_fills_up(form, recipe, tmp_path: Path) -> None:
    if form == "gguf":
        pytest.importorskip("llama_cpp")
    make_tiny("llama", tmp_path / "hf", num_hidden_layers=2)

    def job(destination: Path) -> ExportJob:
        return ExportJob(
            *(tmp_path / "hf", destination, "tiny", form),
            recipe=load_recipe(recipe),
            quality_tokens=0,
        )

    whole = export(job(tmp_path / "elsewhere" / "b"), SilentProgress())
    with small_disk(tmp_path / "small", int(whole.size * 0.1)) as disk:
        for share in (0.1, 0.5, 0.9):
            grow(disk, int(whole.size * share))
            with pytest.raises(ExportError, match=r"disk that holds .*small is full"):
                export(job(disk / "b"), SilentProgress())
            assert list(disk.iterdir()) == []
        grow(disk, 50_000_000)
        again = export(job(disk / "b"), SilentProgress())
        verify_bundle(again)
        assert again.manifest.files == whole.manifest.files
        assert [path.name for path in disk.iterdir()] == ["b"]
