"""A family that has no GGUF side: refused in words before anything is written; ONNX is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from edgesdk_export.calibration.calibration_text import generate_calibration_text
from edgesdk_export.calibration.importance import collect_importance
from edgesdk_export.checkpoint import Checkpoint, open_checkpoint
from edgesdk_export.families import llama, read_decoder, registry
from edgesdk_export.families.family import Family
from edgesdk_export.families.mapping import CheckpointMapping
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.recipes import load_recipe
from support.tiny_models import make_tiny

from edgesdk.errors import ExportError, UnknownArchitecture

pytestmark = pytest.mark.integration


def read_config(checkpoint: Checkpoint) -> CheckpointMapping:
    found = llama.from_config(checkpoint)
    return dataclasses.replace(found, spec=dataclasses.replace(found.spec, family="novel"))


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    novel = Family("novel", ("llama",), read_config, gguf=None)
    others = tuple(family for family in registry.FAMILIES if family.name != "llama")
    monkeypatch.setattr(registry, "FAMILIES", (*others, novel))
    make_tiny("llama", tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("recipe", ["fast", "best"])
def test_a_gguf_is_refused_before_anything_runs(checkpoint: Path, tmp_path: Path, recipe) -> None:
    job = ExportJob(checkpoint, tmp_path / "out" / "b", "novel", "gguf", recipe=load_recipe(recipe))
    stages: list[str] = []

    class Watched(SilentProgress):
        def stage(self, title: str, steps: int) -> None:
            stages.append(title)

    with pytest.raises(ExportError, match="family 'novel' cannot be exported to GGUF") as refused:
        export(job, Watched())
    assert refused.value.hint == "Export to ONNX instead."
    assert stages == []
    assert list((tmp_path / "out").iterdir()) == []


def test_an_onnx_bundle_is_made(checkpoint: Path, tmp_path: Path) -> None:
    job = ExportJob(checkpoint, tmp_path / "b", "novel", recipe=load_recipe("balanced"))
    bundle = export(job, SilentProgress())
    assert bundle.manifest.spec["family"] == "novel"
    assert "importance weights" in bundle.manifest.quantization.method


def test_its_importance_has_plain_names(checkpoint: Path, tmp_path: Path) -> None:
    decoder = read_decoder(open_checkpoint(checkpoint))
    windows = generate_calibration_text(decoder, tmp_path, bos=257, tokens=256)
    assert "blk.0.attn_q.weight" in collect_importance(decoder, windows, text_name="own").entries


def test_a_gguf_of_it_is_unknown(checkpoint: Path) -> None:
    gguf = dataclasses.replace(
        open_checkpoint(checkpoint), container="gguf", config={"general.architecture": "llama"}
    )
    with pytest.raises(UnknownArchitecture, match="known are gemma2, gemma3, phi3, qwen2, qwen3"):
        read_decoder(gguf)
