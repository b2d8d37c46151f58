"""What a checkpoint recommends for sampling comes through an export, in both formats."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.odd_checkpoints import plain, with_json

import edgesdk

pytestmark = pytest.mark.integration

_SCHEMES = {"onnx": "fp32", "gguf": "f32"}
_SAMPLING = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1}


@pytest.mark.parametrize("fmt", _SCHEMES)
def test_a_recommendation_is_used_until_the_caller_says_otherwise(fmt: str, tmp_path: Path) -> None:
    if fmt == "gguf":
        pytest.importorskip("llama_cpp")
    source = with_json(
        plain(tmp_path / "hf"), "generation_config.json", do_sample=True, **_SAMPLING
    )
    job = ExportJob(source, tmp_path / "b", "tiny", fmt, scheme=_SCHEMES[fmt], quality_tokens=0)
    bundle = export(job, SilentProgress())

    assert bundle.manifest.sampling is not None
    assert bundle.manifest.sampling.options() == _SAMPLING
    paths = [bundle.path, *bundle.path.glob("*.gguf")]
    assert len(paths) == (2 if fmt == "gguf" else 1)
    for path in paths:
        with edgesdk.load(path) as model:
            assert model.runtime.sampling == _SAMPLING
            drawn = {model.respond("Hello", max_tokens=12).tokens for _ in range(4)}
            greedy = {model.respond("Hello", max_tokens=12, temperature=0).tokens for _ in range(4)}
        assert len(drawn) > 1
        assert len(greedy) == 1


def test_a_checkpoint_that_recommends_nothing_makes_a_greedy_bundle(tmp_path: Path) -> None:
    source = plain(tmp_path / "hf")
    job = ExportJob(source, tmp_path / "b", "tiny", "onnx", scheme="fp32", quality_tokens=0)
    bundle = export(job, SilentProgress())

    assert bundle.manifest.sampling is None
    with edgesdk.load(bundle.path) as model:
        assert len({model.respond("Hello", max_tokens=12).tokens for _ in range(3)}) == 1
