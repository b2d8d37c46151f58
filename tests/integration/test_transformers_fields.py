"""A configuration means here what it means to transformers: no field is read that it ignores.

The self-test cannot see such a fault, since its reference is the same reading of the same file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import gemma2, gemma3, llama, phi3, qwen2, qwen3, read_decoder
from edgesdk_export.families.fields import ConfigFields
from support.reference_decoder import logits_of
from support.tiny_models import VARIANTS, make_tiny
from support.transformers_fields import default_of, fields_read
from transformers import AutoModelForCausalLM

from edgesdk.errors import CheckpointError

pytestmark = pytest.mark.integration

TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(40)]
FULL, SLIDING = "full_attention", "sliding_attention"


def edit(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def transformers_logits(folder: Path) -> np.ndarray:
    """Of the folder as transformers itself loads it."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].numpy()


class Watched(dict[str, Any]):
    """Remembers which keys were looked up."""

    read: set[str]

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The fields that families read of a configuration."""
    names: set[str] = set()
    plain = ConfigFields.__init__

    def watched(self: ConfigFields, values: Any, where: str) -> None:
        watched_values = Watched(values)
        watched_values.read = names
        plain(self, watched_values, where)

    monkeypatch.setattr(ConfigFields, "__init__", watched)
    return names


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_field_is_read_that_transformers_does_not_read(variant, read, tmp_path):
    model_type, odd = VARIANTS[variant]
    make_tiny(variant, tmp_path)
    edit(tmp_path, {"partial_rotary_factor": 1.0, "attn_logit_softcapping": 20.0})
    read_decoder(open_checkpoint(tmp_path))
    ropes = odd.get("rope_parameters", {})
    kind = ropes.get("full_attention", ropes).get("rope_type", "default")
    assert "hidden_size" in read
    assert read - fields_read(model_type, kind) == set()


def test_the_walk_knows_a_field_that_is_stored_and_not_read():
    assert "attn_logit_softcapping" in fields_read("gemma2")
    assert "attn_logit_softcapping" not in fields_read("gemma3_text")
    assert "partial_rotary_factor" in fields_read("phi3")
    for name in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"):
        assert not {"partial_rotary_factor", "residual_multiplier"} & fields_read(name)


@pytest.mark.parametrize(
    ("model_type", "defaults"),
    [
        ("llama", llama._DEFAULTS),
        ("mistral", llama._MISTRAL_DEFAULTS),
        ("qwen2", qwen2._DEFAULTS),
        ("qwen3", qwen3._DEFAULTS),
        ("gemma2", gemma2._DEFAULTS),
        ("gemma3_text", gemma3._DEFAULTS),
        ("phi3", phi3._DEFAULTS),
    ],
)
def test_defaults_are_those_of_transformers(model_type, defaults):
    # Not fields of these classes: one of `Gemma3TextConfig.__post_init__`, two that mistral lacks.
    rest = {"sliding_window_pattern": 6, "attention_bias": False, "mlp_bias": False}
    for name, value in defaults.items():
        try:
            theirs = default_of(model_type, name)
        except KeyError:
            theirs = rest[name]
        assert value == theirs, name


# In the second half of each pair is a sibling, of another family or another spelling.
IGNORED = [
    ("llama", {"partial_rotary_factor": 0.5}),
    ("qwen2", {"partial_rotary_factor": 0.5}),
    ("qwen3", {"rope_parameters": {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5}}),
    ("gemma2", {"partial_rotary_factor": 0.25}),
    ("gemma3", {"attn_logit_softcapping": 5.0}),
    ("llama", {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    ("llama", {"residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 8.0}),
    ("qwen2", {"logit_scale": 0.5, "scale_emb": 12.0, "clip_qkv": 1.0, "alibi": True}),
    ("llama", {"num_local_experts": 8, "no_rope_layers": [0, 1, 0], "is_encoder_decoder": True}),
    ("gemma2", {"use_bidirectional_attention": True}),
    ("llama-llama3", {"sliding_window": 6, "use_sliding_window": True}),
    ("phi3", {"layer_types": [FULL] * 3, "use_sliding_window": False}),
    ("mistral", {"layer_types": None}),
    ("llama-biased", {"rope_parameters": {FULL: {"rope_type": "default", "rope_theta": 900.0}}}),
]  # fmt: skip
READ = [
    ("mistral", {"layer_types": [SLIDING, FULL, SLIDING]}),
    ("gemma3", {"rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0}}),
    ("gemma3", {"rope_parameters": None, "rope_scaling": {"rope_type": "llama3", "factor": 3.0,
      "low_freq_factor": 1.0, "high_freq_factor": 4.0}, "original_max_position_embeddings": 32}),
    ("llama", {"rope_parameters": None, "rope_scaling": {"rope_type": "llama3", "factor": 3.0,
      "low_freq_factor": 1.0, "high_freq_factor": 4.0}, "original_max_position_embeddings": 32}),
    ("phi3", {"rope_scaling": {"type": "yarn", "short_factor": [1.5] * 8, "long_factor": [2.] * 8},
      "max_position_embeddings": 64, "original_max_position_embeddings": 32}),
    ("phi3", {"rope_parameters": None, "partial_rotary_factor": 0.5}),
    ("gemma2", {"final_logit_softcapping": None, "attn_logit_softcapping": None}),
]  # fmt: skip


@pytest.mark.parametrize(("variant", "changes"), [*IGNORED, *READ])
def test_a_field_means_what_it_means_to_transformers(variant, changes, tmp_path):
    make_tiny(variant, tmp_path)
    plain = read_decoder(open_checkpoint(tmp_path)).spec
    edit(tmp_path, changes)
    decoder = read_decoder(open_checkpoint(tmp_path))
    assert (decoder.spec == plain) == ((variant, changes) in IGNORED)
    np.testing.assert_allclose(logits_of(decoder, TOKENS), transformers_logits(tmp_path), atol=2e-4)


@pytest.mark.parametrize("variant", ["llama-llama3", "qwen2-yarn", "gemma3"])
def test_a_stretched_part_of_a_head_is_refused(variant, tmp_path):
    # transformers stretches half of the frequencies and then fails on the first token.
    make_tiny(variant, tmp_path)
    edit(tmp_path, {"partial_rotary_factor": 0.5})
    with pytest.raises(RuntimeError, match="size of tensor"):
        transformers_logits(tmp_path)
    with pytest.raises(CheckpointError, match=r"rope of 0\.5 of a head"):
        read_decoder(open_checkpoint(tmp_path))


# Other values of many fields. Sizes are left as they are: they are the tensors'.
CHANGES: list[dict[str, Any]] = [
    {},
    {"partial_rotary_factor": 0.5},
    {"attn_logit_softcapping": 5.0},
    {"final_logit_softcapping": 3.0},
    {"query_pre_attn_scalar": 100},
    {"sliding_window": 6},
    {"sliding_window": None},
    {"use_sliding_window": True},
    {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2, "layer_types": None},
    {"layer_types": None, "sliding_window_pattern": 2},
    {"layer_types": [FULL] * 3},
    {"rope_theta": 500.0},
    {"rope_parameters": None},
    {"rope_parameters": None, "rope_theta": 500.0},
    {"rope_parameters": None, "rope_local_base_freq": 50.0},
    {"rope_scaling": {"type": "linear", "factor": 3.0}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 3.0}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 3.0, "mscale": 0.7, "mscale_all_dim": 0.5,
                      "original_max_position_embeddings": 16, "beta_fast": 16}},
    {"rope_scaling": {"rope_type": "longrope", "factor": 4.0, "attention_factor": 1.5,
                      "short_factor": [1.1] * 8, "long_factor": [2.0] * 8,
                      "original_max_position_embeddings": 30}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 900.0}},
    {"original_max_position_embeddings": 24},
    {"max_position_embeddings": 128},
    {"rms_norm_eps": 0.3},
    {"hidden_act": "gelu_pytorch_tanh"},
    {"hidden_activation": "silu"},
    {"attention_multiplier": 0.1, "attention_scale": 0.5, "logit_softcap": 3.0},
    {"rope_percent": 0.5, "rotary_pct": 0.5, "rope_type": "yarn", "rope_interleaved": True},
    {"pretraining_tp": 2, "attention_dropout": 0.5, "resid_pdrop": 0.5, "norm_eps": 0.5},
    {"qk_norm": True, "sandwich_norm": True, "attention_sink": True, "num_experts": 4},
    {"scale_depth": 1.4, "dim_model_base": 32, "add_cross_attention": True},
]  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_field_means_what_it_means_to_transformers(variant, tmp_path):
    make_tiny(variant, tmp_path)
    compared = 0
    text = (tmp_path / "config.json").read_text()
    for changes in CHANGES:
        (tmp_path / "config.json").write_text(text)
        edit(tmp_path, changes)
        try:
            theirs = transformers_logits(tmp_path)
        except Exception:
            # Some families refuse some fields, and so may their reading here.
            continue
        try:
            ours = logits_of(read_decoder(open_checkpoint(tmp_path)), TOKENS)
        except CheckpointError as error:
            pytest.fail(f"{variant} with {changes}: transformers loads it; here {error}")
        np.testing.assert_allclose(ours, theirs, atol=5e-4, err_msg=f"{variant}: {changes}")
        compared += 1
    assert compared >= len(CHANGES) - 6
