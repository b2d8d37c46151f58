"""GGUF names and transforms, proven against llama.cpp itself: transformers, llama.cpp on the
GGUF, and our reading of that GGUF give the same logits."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.weights import read_whole
from support.reference_decoder import logits_of
from support.tiny_models import make_tiny

from edgesdk.errors import ConfigMismatch, UnknownArchitecture

pytest.importorskip("llama_cpp")
from support.tiny_ggufs import llama_cpp_logits, write_tiny_gguf

pytestmark = pytest.mark.integration

TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(40)]

# What GGUF or llama.cpp cannot say is switched off: windows outside gemma, biases of qwen3,
# query_pre_attn_scalar. llama.cpp looks gelu up in a table of float16.
CASES = {
    "llama": ({}, 5e-4),
    "llama-biased": ({}, 5e-4),
    "llama-tied": ({}, 5e-4),
    "llama-linear": ({}, 5e-4),
    "llama-llama3": ({}, 5e-4),
    "qwen2": ({}, 5e-4),
    "qwen2-yarn": ({}, 5e-4),
    "qwen3": ({"attention_bias": False}, 5e-4),
    "gemma2": ({"query_pre_attn_scalar": 32}, 2e-2),
    "gemma3": ({"query_pre_attn_scalar": 32}, 2e-2),
    "phi3": ({"sliding_window": None}, 5e-4),
    "phi3-longrope": ({}, 5e-4),
}


@pytest.mark.parametrize("variant", CASES)
def test_three_readings_agree(variant, tmp_path):
    overrides, tolerance = CASES[variant]
    model = make_tiny(variant, tmp_path / "hf", **overrides)
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(model, path)
    ours = logits_of(read_decoder(open_checkpoint(path)), TOKENS)
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    # llama.cpp takes the long factors where the context that it was asked for is long.
    np.testing.assert_allclose(llama_cpp_logits(path, TOKENS), theirs, atol=tolerance)


def test_the_window_of_phi3_is_read_though_llama_cpp_ignores_it(tmp_path):
    model = make_tiny("phi3", tmp_path / "hf")
    write_tiny_gguf(model, tmp_path / "tiny.gguf")
    decoder = read_decoder(open_checkpoint(tmp_path / "tiny.gguf"))
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0].numpy()
    np.testing.assert_allclose(logits_of(decoder, TOKENS), theirs, atol=2e-4)


def test_rows_of_permuted_quantized_weights(tmp_path):
    model = make_tiny("llama", tmp_path / "hf")
    write_tiny_gguf(model, tmp_path / "q.gguf", quantized=gguf.GGMLQuantizationType.Q8_0)
    checkpoint = open_checkpoint(tmp_path / "q.gguf")
    assert checkpoint.dtypes == ("F32", "Q8_0")
    weights = read_decoder(checkpoint).weights
    exact = model.state_dict()["model.layers.1.self_attn.k_proj.weight"].numpy()
    key = weights["layers.1.k.weight"]
    whole = read_whole(key)
    np.testing.assert_allclose(whole, exact, atol=np.abs(exact).max() / 127)
    for start, stop in [(0, 1), (5, 9), (15, 17), (3, 32), (31, 32), (8, 8)]:
        np.testing.assert_array_equal(key.rows(start, stop), whole[start:stop])


def test_unknown_gguf_architecture(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnknownArchitecture, match=r"'mamba'; known are .*qwen3.*edgesdk run FILE"):
        read_decoder(open_checkpoint(tmp_path / "x.gguf"))


def test_a_gguf_with_experts_is_refused(tmp_path):
    model = make_tiny("llama", tmp_path / "hf")
    write_tiny_gguf(model, tmp_path / "tiny.gguf")
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    checkpoint.config["llama.expert_count"] = 8
    with pytest.raises(ConfigMismatch, match="expert_count = 8"):
        read_decoder(checkpoint)
