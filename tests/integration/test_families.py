"""Every family against transformers: the spec and the weights, by their logits."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.reference_decoder import logits_of
from support.tiny_models import VARIANTS, make_tiny

from edgesdk.bundle.spec import canonical_shapes
from edgesdk.errors import CheckpointError, ConfigMismatch, UnknownArchitecture

pytestmark = pytest.mark.integration

# Past every window and past phi3's short factors.
TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(40)]


def transformers_logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant, tmp_path):
    model = make_tiny(variant, tmp_path)
    decoder = read_decoder(open_checkpoint(tmp_path))
    ours, theirs = logits_of(decoder, TOKENS), transformers_logits(model)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert {k: w.shape for k, w in decoder.weights.items()} == canonical_shapes(decoder.spec)
    assert decoder.spec.parameters == sum(p.numel() for p in model.parameters())
    # phi3's short factors hold up to its original context.
    short = TOKENS[:20]
    np.testing.assert_allclose(
        logits_of(decoder, short), transformers_logits(model, short), atol=2e-4
    )


@pytest.mark.parametrize("variant", ["llama-biased", "gemma3", "phi3-longrope"])
def test_shards_and_bfloat16_give_the_same_weights(variant, tmp_path):
    make_tiny(variant, tmp_path / "one", dtype=torch.bfloat16)
    make_tiny(variant, tmp_path / "many", dtype=torch.bfloat16, max_shard_size="60KB")
    one, many = open_checkpoint(tmp_path / "one"), open_checkpoint(tmp_path / "many")
    assert len(many.files) > 2
    assert one.dtypes == ("BF16",)
    first, second = read_decoder(one), read_decoder(many)
    assert first.spec == second.spec
    for name, weight in first.weights.items():
        rows = weight.shape[0]
        pieces = [second.weights[name].rows(i, min(i + 5, rows)) for i in range(0, rows, 5)]
        np.testing.assert_array_equal(weight.rows(0, rows), np.concatenate(pieces))


def test_text_part_of_a_multimodal_gemma3(tmp_path):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    make_tiny("gemma3", tmp_path / "text")
    text = json.loads((tmp_path / "text" / "config.json").read_text())
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "both")
    decoder = read_decoder(open_checkpoint(tmp_path / "both"))
    np.testing.assert_allclose(logits_of(decoder, TOKENS), transformers_logits(model), atol=2e-4)
    # Saved without its head, its names have no "model." in front.
    path = tmp_path / "both" / "model.safetensors"
    stored = load_file(path)
    assert "language_model.model.layers.0.mlp.up_proj.weight" in stored
    # What was loaded is mapped from the file that is written.
    save_file({name.replace(".model.", ".", 1): stored[name].clone() for name in stored}, path)
    again = read_decoder(open_checkpoint(tmp_path / "both"))
    np.testing.assert_allclose(logits_of(again, TOKENS), transformers_logits(model), atol=2e-4)


def test_old_spelling_of_rope_settings(tmp_path):
    make_tiny("llama-llama3", tmp_path)
    new = read_decoder(open_checkpoint(tmp_path)).spec
    settings = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    theta = settings.pop("rope_theta")
    edit_config(tmp_path, rope_parameters="absent", rope_theta=theta, rope_scaling=settings)
    assert read_decoder(open_checkpoint(tmp_path)).spec == new


def test_old_spelling_of_gemma3_rope_settings(tmp_path):
    make_tiny("gemma3", tmp_path)
    new = read_decoder(open_checkpoint(tmp_path)).spec
    edit_config(
        tmp_path,
        rope_parameters="absent",
        layer_types="absent",
        rope_theta=1_000_000.0,
        rope_local_base_freq=10_000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window_pattern=6,
    )
    assert read_decoder(open_checkpoint(tmp_path)).spec == new


def test_gemma3_without_a_theta_takes_its_own_default(tmp_path):
    make_tiny("gemma3", tmp_path)
    edit_config(tmp_path, rope_parameters="absent")
    spec = read_decoder(open_checkpoint(tmp_path)).spec
    assert spec.rope.theta == 1_000_000
    assert spec.local_rope is not None
    assert spec.local_rope.theta == 10_000


def test_an_equal_head_is_tied_whatever_the_config_says(tmp_path):
    model = make_tiny("llama", tmp_path / "m")
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight.data)
    model.save_pretrained(tmp_path / "m")
    decoder = read_decoder(open_checkpoint(tmp_path / "m"))
    assert decoder.spec.tied
    assert "head.weight" not in decoder.weights


def test_a_tied_config_with_a_differing_head(tmp_path):
    make_tiny("llama", tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    with pytest.raises(ConfigMismatch, match=r"lm_head\.weight.*differs"):
        read_decoder(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"intermediate_size": 128}, r"gate_proj\.weight' has shape \[96, 64\].*\[128, 64\]"),
        ({"vocab_size": 512}, r"embed_tokens\.weight"),
        ({"num_key_value_heads": 4}, r"k_proj\.weight"),
        (
            {"num_hidden_layers": 2},
            r"model\.layers\.2\.\S+ and \d+ more has no place.*by this one transformers",
        ),
        ({"num_hidden_layers": 4}, r"model\.layers\.3\.\S+ is missing"),
        ({"attention_bias": True}, r"q_proj\.bias' is missing"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps = 'small'"),
        ({"num_hidden_layers": 2**39}, "num_hidden_layers = 549755813888"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps = 1000"),
        ({"rope_parameters": {"rope_theta": 1.0}}, "rope_theta = 1.0 is not above 1"),
        ({"hidden_size": -1}, "hidden_size = -1"),
        ({"hidden_size": "absent"}, "hidden_size is missing"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta"),
    ],
)
def test_a_config_that_contradicts_or_cannot_be_expressed(changes, names, tmp_path):
    make_tiny("llama", tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ConfigMismatch, match=names):
        read_decoder(open_checkpoint(tmp_path))


def test_weights_that_are_already_quantized_are_refused(tmp_path):
    make_tiny("llama", tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match="gptq"):
        read_decoder(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("gpt_neox", "Try '--via optimum'"),
        ("falcon", "Try '--via optimum'"),
        ("mamba", "Neither does optimum"),
        (None, "Neither does optimum"),
        (7, "Neither does optimum"),
        (["llama"], "Neither does optimum"),
    ],
)
def test_unknown_architecture_says_which_are_known(name, way, tmp_path):
    make_tiny("llama", tmp_path)
    edit_config(tmp_path, model_type=name)
    with pytest.raises(UnknownArchitecture, match=rf"gemma2.*phi3.*{way}"):
        read_decoder(open_checkpoint(tmp_path))


JSON = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5),
    st.lists(st.one_of(st.text(max_size=20), st.floats(), st.none()), max_size=4),
    st.dictionaries(
        st.sampled_from(
            ["rope_type", "type", "factor", "rope_theta", "full_attention", "sliding_attention",
             "short_factor", "original_max_position_embeddings", "partial_rotary_factor"]
        ),
        st.one_of(st.floats(), st.integers(), st.sampled_from(["yarn", "longrope", "llama3"])),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    found = {}
    for variant in ("llama", "qwen2-windowed", "gemma2", "gemma3", "phi3-longrope"):
        folder = tmp_path_factory.mktemp(variant)
        make_tiny(variant, folder)
        found[variant] = open_checkpoint(folder)
    return found


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_no_config_gives_another_exception(data, checkpoints):
    checkpoint = checkpoints[data.draw(st.sampled_from(sorted(checkpoints)))]
    keys = st.sampled_from(
        [*checkpoint.config, "rope_scaling", "rope_theta", "quantization_config", "layer_types"]
    )
    config = {**checkpoint.config, **data.draw(st.dictionaries(keys, JSON, max_size=3))}
    with contextlib.suppress(CheckpointError):
        read_decoder(dataclasses.replace(checkpoint, config=config))
