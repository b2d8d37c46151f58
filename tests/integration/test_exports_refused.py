"""What no engine computes is refused before anything is written: what, where, and what to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.gguf.decoder_metadata import check_llama_cpp
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.quality.evaluation_text import default_text
from edgesdk_export.quality.report import measure_bundles
from safetensors.numpy import load_file, save_file
from support.odd_checkpoints import plain, with_json
from support.tiny_models import make_tiny

import edgesdk
from edgesdk.errors import ConfigMismatch, ExportError

pytestmark = pytest.mark.integration

FORMATS = {"onnx": "fp32", "gguf": "f32"}


def refused(source: Path, fmt: str, target: Path, error: type[Exception], match: str) -> None:
    stages = []

    class Progress(SilentProgress):
        def stage(self, title: str, steps: int) -> None:
            stages.append(title)

    job = ExportJob(source, target / "b", "tiny", fmt, scheme=FORMATS[fmt], quality_tokens=0)
    with pytest.raises(error, match=match):
        export(job, Progress())
    assert stages == []
    assert not list(target.glob("*"))


def renamed(folder: Path, start: str, extra: str | None = None) -> Path:
    """The checkpoint with `start` before each tensor's name."""
    path = plain(folder) / "model.safetensors"
    tensors = {start + name: value for name, value in load_file(path).items()}
    if extra is not None:
        tensors[extra] = next(iter(tensors.values()))
    save_file(tensors, path)
    return folder


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    ("start", "extra", "match"),
    [
        ("base_model.model.", None, r"21 tensors have PEFT's names.*merge_and_unload\(\)"),
        ("base_model.model.", "base_model.model.x.lora_A.weight", "Merge the adapter first"),
        ("_orig_mod.", None, r"torch\.compile's names.*Save the model itself"),
        ("module.", None, "DistributedDataParallel's names.*Save the model itself"),
    ],
)
def test_names_of_a_wrapper_are_called_so(start, extra, match, fmt, tmp_path):
    source = renamed(tmp_path / "hf", start, extra)
    refused(source, fmt, tmp_path / "out", ConfigMismatch, match)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("kv_heads", [3, 5])
def test_heads_that_share_no_kv_heads_evenly_are_refused(kv_heads, fmt, tmp_path):
    source = with_json(plain(tmp_path / "hf"), "config.json", num_key_value_heads=kv_heads)
    match = rf"4 attention heads cannot share {kv_heads} KV heads.*divisor of 4"
    refused(source, fmt, tmp_path / "out", ConfigMismatch, match)


def yarn(folder: Path, **betas: float) -> Path:
    rope = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, **betas}
    rope["original_max_position_embeddings"] = 64
    make_tiny("llama", folder, rope_parameters=rope, head_dim=64)
    return folder


@pytest.mark.parametrize(
    ("betas", "said"),
    [
        ({"beta_fast": 16.0, "beta_slow": 2.0}, "beta_fast of 16 and a beta_slow of 2"),
        ({"beta_slow": 2.0}, "beta_fast of 32 and a beta_slow of 2"),
    ],
)
def test_yarn_with_betas_that_llama_cpp_has_not_is_refused_in_gguf(betas, said, tmp_path):
    source = yarn(tmp_path / "hf", **betas)
    refused(source, "gguf", tmp_path / "out", ExportError, f"{said}.*Export to ONNX instead")
    job = ExportJob(source, tmp_path / "b", "tiny", "onnx", scheme="fp32", quality_tokens=0)
    assert export(job, SilentProgress()).manifest.shape.head_size == 64


def test_yarn_with_its_usual_betas_is_written(tmp_path):
    pytest.importorskip("llama_cpp")
    source = yarn(tmp_path / "hf", beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=0.5)
    job = ExportJob(source, tmp_path / "b", "tiny", "gguf", scheme="f32", quality_tokens=0)
    assert export(job, SilentProgress()).manifest.format == "gguf"


@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3", "gemma3"])
def test_partial_rope_that_llama_cpp_has_not_is_refused_in_gguf(variant, tmp_path):
    """llama.cpp would end its process, or compute something else."""
    changes = {"qwen3": {"attention_bias": False}, "gemma3": {"query_pre_attn_scalar": 32}}
    make_tiny(variant, tmp_path / "hf", **changes.get(variant, {}))
    spec = read_decoder(open_checkpoint(tmp_path / "hf")).spec
    check_llama_cpp(spec)
    half = dataclasses.replace(spec.rope, rotary_size=spec.head_size // 2)
    with pytest.raises(ExportError, match=r"rotating \d+ of \d+ values.*Export to ONNX instead"):
        check_llama_cpp(dataclasses.replace(spec, rope=half))


@pytest.mark.parametrize("variant", ["qwen2", "phi3"])
def test_heads_that_do_not_fill_the_hidden_size_are_refused_in_gguf(variant, tmp_path):
    make_tiny(variant, tmp_path / "hf", head_dim=24, sliding_window=None)
    match = r"4 heads of 24 values over a hidden size of 64.*Export to ONNX instead"
    refused(tmp_path / "hf", "gguf", tmp_path / "out", ExportError, match)
    job = ExportJob(tmp_path / "hf", tmp_path / "b", "t", "onnx", scheme="fp32", quality_tokens=0)
    assert export(job, SilentProgress()).manifest.shape.head_size == 24


@pytest.mark.parametrize(("fmt", "scheme"), [("onnx", "int4"), ("gguf", "f32"), ("gguf", "q4_k_m")])
def test_heads_of_any_even_size_run(fmt, scheme, tmp_path):
    """onnxruntime takes multiples of 8 only; there they end with zeros."""
    make_tiny("llama", tmp_path / "hf", head_dim=20)
    job = ExportJob(tmp_path / "hf", tmp_path / "b", "t", fmt, scheme=scheme, quality_tokens=64)
    bundle = export(job, SilentProgress())
    assert bundle.manifest.shape.head_size == (24 if fmt == "onnx" else 20)
    with edgesdk.load(bundle.path) as model:
        assert model.respond("Hello", max_tokens=2).tokens
    (found,) = measure_bundles(
        [bundle], tmp_path / "hf", default_text(), tokens=64, progress=lambda done, steps: None
    )
    assert found.quality.kl_mean < 1
