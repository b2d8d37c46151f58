"""`edgesdk export` as a process: what it prints, leaves, refuses, and how much memory it takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.command_line import edgesdk_here, edgesdk_in
from support.exported import Exported
from support.tiny_models import make_tiny

import edgesdk

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama checkpoint of a few thousand weights, with a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_tiny("llama", folder)
    return folder


@pytest.fixture
def tiny(made: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, which the test may change."""
    shutil.copytree(made, tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_checkpoint_becomes_a_bundle_in_the_store(tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 400)
    done = edgesdk_in(
        "export", str(tiny), "--bits", "8", "--text", str(text), home=tmp_path / "home"
    )
    assert "tiny-int8: int8" in done.stdout
    assert "top-1 agreement" in done.stdout
    assert "Writing int8 layers" in done.stderr
    shown = json.loads(edgesdk_in("show", "tiny-int8", "--json", home=tmp_path / "home").stdout)
    assert "int8" in json.dumps(shown)
    kept = edgesdk_in("export", str(tiny), "--bits", "8", "--skip-existing", home=tmp_path / "home")
    assert "is here already" in kept.stderr
    assert kept.stdout == done.stdout
    again = edgesdk_in("export", str(tiny), "--bits", "8", home=tmp_path / "home", expect=1)
    assert "exists already" in again.stderr
    assert again.stderr.strip().splitlines()[-1].startswith("edgesdk: error: ")
    assert "Traceback" not in again.stderr


def test_a_bundle_for_npus_from_the_command_line(tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    sizes = ("--window", "96", "--prefill", "16")
    npu = ("export", str(tiny), "--target", "npu", "--quality-tokens", "0")
    done = edgesdk_in(*npu, "--bits", "16", *sizes, home=home)
    assert "tiny-npu-fp16: fp16, 16.00 bits per weight" in done.stdout
    shown = edgesdk_in("show", "tiny-npu-fp16", home=home).stdout
    assert "bundle, onnx for npu" in shown
    assert "of fixed shapes: 16 tokens at a time, or one; window 96; float16" in shown
    assert "96 tokens" in shown
    assert "tiny-npu-fp16" in edgesdk_in("list", home=home).stdout
    answer = edgesdk_in(
        "run", "tiny-npu-fp16", "hi", "--device", "cpu", "--max-tokens", "3", home=home
    )
    assert answer.stdout
    refused = edgesdk_in(*npu, "--bits", "5.5", "--recipe", "best", home=home, expect=1)
    assert "graphs of fixed shapes have weights of one format" in refused.stderr
    refused = edgesdk_in(*npu, "--window", "5000", home=home, expect=1)
    assert "larger than the model's context of 256" in refused.stderr


def test_wrong_use_is_two_and_a_failed_job_is_one(tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert "--bits" in edgesdk_here("export", str(tiny), "--bits", "5", home=home, expect=2).stderr
    assert (
        "no checkpoint 'smollm2'" in edgesdk_here("export", "smollm2", home=home, expect=1).stderr
    )


def test_an_unknown_architecture_names_the_known_ones_and_the_way(
    tiny: Path, tmp_path: Path
) -> None:
    config = json.loads((tiny / "config.json").read_text())
    config["architectures"], config["model_type"] = ["GPTNeoXForCausalLM"], "gpt_neox"
    (tiny / "config.json").write_text(json.dumps(config))
    error = edgesdk_here("export", str(tiny), home=tmp_path / "home", expect=1).stderr
    for word in ("gpt_neox", "llama", "qwen2", "phi3", "--via optimum"):
        assert word in error


def test_a_broken_weight_is_named_and_nothing_is_left(tiny: Path, tmp_path: Path) -> None:
    path = tiny / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "down_proj" in name)
    tensors[name] = np.array(tensors[name], copy=True)
    tensors[name][3, 4] = np.nan
    save_file(tensors, path, metadata={"format": "pt"})
    error = edgesdk_here("export", str(tiny), home=tmp_path / "home", expect=1).stderr
    assert "down" in error
    assert "nan" in error
    assert list((tmp_path / "home" / "bundles").iterdir()) == []


def test_a_flipped_byte_in_a_bundle_is_found_by_verify(tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    edgesdk_here("export", str(tiny), "--name", "t", "--quality-tokens", "0", home=home)
    edgesdk_here("verify", "t", home=home)
    data_file = home / "bundles" / "t" / "model.onnx.data"
    data = bytearray(data_file.read_bytes())
    data[len(data) // 3] ^= 4
    data_file.write_bytes(data)
    assert "model.onnx.data is damaged" in edgesdk_here("verify", "t", home=home, expect=1).stdout


@pytest.mark.nightly
def test_a_model_of_one_and_a_half_billion_fits_in_two_gigabytes(
    qwen_coder_int4: Exported,
) -> None:
    """Peak resident memory of the whole export, quality included; then the bundle answers."""
    assert qwen_coder_int4.peak < 2_000_000_000
    place = qwen_coder_int4.path
    bundle = edgesdk.open_bundle(place)
    assert bundle.manifest.quantization.weights == "int4"
    assert bundle.manifest.quality is not None
    assert bundle.manifest.quality.kl_mean < 0.08
    with edgesdk.load(place, context=512) as model:
        reply = model.respond("What is the capital of France? One word.", max_tokens=16)
        code = model.respond("Write a Python function add(a, b). Only code.", max_tokens=60)
    assert "Paris" in reply.text
    assert "def add(a, b):" in code.text
    assert "return a + b" in code.text


@pytest.mark.nightly
def test_inputs_with_outliers_are_no_fault_of_an_export_in_8_bits(
    qwen_coder_gguf: Path, tmp_path: Path
) -> None:
    """Kernels round them to 8 bits, which costs this model more than its weights do."""
    place = tmp_path / "qwen8"
    options = ("--bits", "8", "--quality-tokens", "0", "--name", "qwen8", "--output", str(place))
    edgesdk_here("export", str(qwen_coder_gguf), *options, home=tmp_path / "home")
    assert edgesdk.open_bundle(place).manifest.quantization.weights == "int8"
    shutil.rmtree(place)
