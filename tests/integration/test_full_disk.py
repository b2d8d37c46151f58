"""An export onto a disk that fills up: a clear error, nothing left, and room is all it takes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import Silent
from support.tiny_models import make_tiny

from edgesdk.bundle.opening import open_bundle
from edgesdk.errors import ExportError

pytestmark = pytest.mark.integration

# The checkpoint and its float32 weights take about 1 MB: the first layers, the last, the manifest.
SIZES = ["64k", "192k", "448k"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A file system of 64 kB, and what gives it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            return False

    def resize(size: str) -> None:
        assert mount("remount", f"size={size}")

    if not mount("size=64k"):
        pytest.skip("mounting a small file system needs root")
    yield folder, resize
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny("llama", folder)
    return folder


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_a_full_disk_is_told_and_left_empty(form, size, disk, checkpoint: Path) -> None:
    folder, resize = disk
    resize(size)
    job = ExportJob(
        checkpoint=checkpoint,
        destination=folder / "bundle",
        name="tiny",
        format=form,
        scheme={"onnx": "fp32", "gguf": "f32"}[form],
        quality_tokens=0,
    )
    with pytest.raises(ExportError, match=f"disk that holds {folder} is full"):
        export(job, Silent())
    assert list(folder.iterdir()) == []
    resize("40m")
    export(job, Silent())
    assert open_bundle(folder / "bundle").manifest.name == "tiny"
