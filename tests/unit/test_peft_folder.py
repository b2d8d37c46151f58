"""Reading LoRAs that PEFT saved: scales by hand, and what is refused, each with a remedy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from edgesdk_export.adapters.peft_folder import read_peft_folder
from safetensors.numpy import save_file

from edgesdk.bundle.spec import DecoderSpec, RopeSpec
from edgesdk.errors import CheckpointError, ConfigMismatch, DamagedCheckpoint, ExportError

SPEC = DecoderSpec(
    family="llama",
    architecture="LlamaForCausalLM",
    vocab_size=11,
    hidden_size=8,
    intermediate_size=6,
    layers=2,
    heads=2,
    kv_heads=1,
    head_size=4,
    context_length=16,
    norm_eps=1e-5,
    rope=RopeSpec(10_000.0, 4),
    windows=(None, None),
    attention_scale=0.5,
    tied=True,
)
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none"}
Q = "base_model.model.model.layers.1.self_attn.q_proj"
DOWN = "base_model.model.model.layers.0.mlp.down_proj"


def pair(module, rank, rows, columns):
    """Tensors of ones."""
    return {
        f"{module}.lora_A.weight": np.ones((rank, columns), np.float32),
        f"{module}.lora_B.weight": np.ones((rows, rank), np.float32),
    }


def read(folder, tensors, **settings):
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **settings}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return read_peft_folder(folder, SPEC, where="the bundle")


@pytest.mark.parametrize(
    ("settings", "rank", "scale"),
    [
        ({}, 2, 3.0),
        ({"use_rslora": True, "r": 4}, 4, 3.0),
        ({"alpha_pattern": {"q_proj": 4}}, 2, 2.0),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 4}}, 2, 3.0),
        ({"rank_pattern": {r"layers\.\d.self_attn.q_proj": 3}}, 3, 2.0),
    ],
)
def test_scales_are_those_of_peft(tmp_path, settings, rank, scale):
    weights = read(tmp_path, pair(Q, rank, 8, 8), **settings)
    assert set(weights.changes) == {"layers.1.q"}
    change = weights.changes["layers.1.q"]
    # A product of ones has the rank in each place.
    np.testing.assert_allclose(change.up @ change.down, np.full((8, 8), rank * scale))
    assert (weights.rank, weights.targets, weights.parameters) == (rank, ("q",), rank * 16)


def test_fused_projections_become_their_parts(tmp_path):
    module = "base_model.model.model.layers.0.self_attn.qkv_proj"
    tensors = pair(module, 2, 16, 8)
    tensors[f"{module}.lora_B.weight"] *= np.arange(16, dtype=np.float32)[:, None]
    changes = read(tmp_path, tensors).changes
    assert {name: len(change.up) for name, change in changes.items()} == {
        "layers.0.q": 8,
        "layers.0.k": 4,
        "layers.0.v": 4,
    }
    assert changes["layers.0.v"].up[0, 0] == 12 * 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "IA3 adapters are not supported"),
        ({"use_dora": True}, "use_dora = True .*DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save .*trained whole"),
        ({"bias": "all"}, "bias = 'all' .*Train with bias='none'"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"init_lora_weights": "pissa"}, "also changed the base model's own weights"),
        ({"trainable_token_indices": [1]}, "Embeddings are not adapted"),
        ({"fan_in_fan_out": True}, "the setting fan_in_fan_out = True .*Merge it with peft"),
        ({"a_setting_of_tomorrow": 3}, "the setting a_setting_of_tomorrow = 3"),
    ],
)
def test_settings_that_change_more_are_refused_by_name(tmp_path, settings, words):
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path, pair(Q, 2, 8, 8), **settings)


@pytest.mark.parametrize(
    ("tensors", "settings", "words"),
    [
        (pair(Q, 3, 8, 8), {}, "the ranks 3 and 3; .* says 2"),
        (pair(Q, 2, 8, 6), {}, "changes layers.1.q as a matrix of 8 x 6; .*has 8 x 8"),
        (pair(DOWN, 2, 6, 8), {}, "changes layers.0.down as a matrix of 6 x 8"),
        (pair(Q.replace("1", "7"), 2, 8, 8), {}, "changes layers.7.q, which the bundle"),
        (pair("base_model.model.lm_head", 2, 11, 8), {}, "lm_head, which is the embedding"),
        ({}, {}, "has no low-rank weights"),
    ],
)
def test_ranks_and_shapes_of_another_model_are_refused(tmp_path, tensors, settings, words):
    with pytest.raises(ConfigMismatch, match=words):
        read(tmp_path, tensors, **settings)


def test_other_tensors_and_damaged_files_are_refused(tmp_path):
    embedding = {"base_model.model.model.embed_tokens.lora_embedding_A": np.ones((2, 11))}
    with pytest.raises(CheckpointError, match="lora_embedding_A is no low-rank weight"):
        read(tmp_path, embedding)
    with pytest.raises(CheckpointError, match=r"cannot be adapted\..*q_proj, k_proj"):
        read(tmp_path, pair("base_model.model.model.layers.0.mlp.router", 2, 8, 8))
    with pytest.raises(DamagedCheckpoint, match="has lora_A only"):
        read(tmp_path, {f"{Q}.lora_A.weight": np.ones((2, 8), np.float32)})
    with pytest.raises(ExportError, match="lora_B"):
        read(tmp_path, {**pair(Q, 2, 8, 8), f"{Q}.lora_B.weight": np.full((8, 2), np.nan)})
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DamagedCheckpoint):
        read_peft_folder(tmp_path, SPEC, where="the bundle")
    path.unlink()
    with pytest.raises(DamagedCheckpoint, match="is missing"):
        read_peft_folder(tmp_path, SPEC, where="the bundle")
    with pytest.raises(CheckpointError, match="is no PEFT folder"):
        read_peft_folder(tmp_path / "elsewhere", SPEC, where="the bundle")
