"""Rope tables: small in the file whatever context a model declares, and grown with its text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.reference_decoder import frequencies_of
from support.tiny_models import VOCAB_SIZE, make_tiny

from edgesdk.bundle.graph_io import ROPE_POSITIONS
from edgesdk.bundle.rope import rope_tables
from edgesdk.bundle.spec import RopeSpec
from edgesdk.engines.onnx.rope_tables import RopeTables
from edgesdk.engines.registry import open_engine

pytestmark = pytest.mark.integration

LENGTH = ROPE_POSITIONS + 60
IDS = np.random.default_rng(0).integers(0, VOCAB_SIZE, LENGTH).tolist()
PARTIAL = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [1.0 + i for i in range(8)],
}
# What each adds: tables in the attention operator, a rope for windowed layers, heads that another
# operator rotates, long factors from the middle of a text on.
KINDS = {
    "llama": {"num_hidden_layers": 2, "head_dim": 32},
    "llama-llama3": {"num_hidden_layers": 2},
    "qwen2-yarn": {"num_hidden_layers": 2},
    "gemma3": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    "llama-biased": {"num_hidden_layers": 2, "head_dim": 8},
    "phi3-longrope": {
        "num_hidden_layers": 2,
        "original_max_position_embeddings": ROPE_POSITIONS + 20,
        "rope_parameters": {**PARTIAL, "original_max_position_embeddings": ROPE_POSITIONS + 20},
    },
}


def tiny_bundle(variant: str, folder: Path, **overrides):
    model = make_tiny(variant, folder / "hf", **overrides)
    job = ExportJob(folder / "hf", folder / "b", "tiny", scheme="fp32", quality_tokens=0)
    return model, export(job, SilentProgress())


def transformers_rows(model, ids: list[int], rows: int) -> np.ndarray:
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        return model(torch.tensor([ids]), logits_to_keep=rows).logits[0].numpy()


@pytest.mark.parametrize("variant", KINDS)
def test_past_the_stored_tables_logits_are_those_of_transformers(variant, tmp_path):
    model, bundle = tiny_bundle(
        variant, tmp_path, max_position_embeddings=1_000_000, **KINDS[variant]
    )
    engine = open_engine(bundle, threads=1)
    state = engine.new_state()
    state.extend(IDS[: ROPE_POSITIONS - 3])
    stepped = [state.extend([token]).copy() for token in IDS[ROPE_POSITIONS - 3 : ROPE_POSITIONS]]
    wanted = transformers_rows(model, IDS[:ROPE_POSITIONS], 3)
    np.testing.assert_allclose(np.concatenate(stepped), wanted, atol=2e-3)
    rows = state.extend(IDS[ROPE_POSITIONS:], logits="all")
    if variant != "phi3-longrope":
        # transformers keeps its first keys turned by short factors; so does a KV cache here.
        np.testing.assert_allclose(rows, transformers_rows(model, IDS, len(rows)), atol=2e-3)
    fresh = engine.new_state()
    whole = fresh.extend(IDS, logits="all")[-3:]
    np.testing.assert_allclose(whole, transformers_rows(model, IDS, 3), atol=2e-3)
    engine.close()


@pytest.mark.parametrize("context", [1_000_000, 10**9])
def test_a_long_context_makes_no_large_file(context, tmp_path):
    make_tiny("gemma3", tmp_path / "hf", max_position_embeddings=256)
    _, bundle = tiny_bundle("gemma3", tmp_path, max_position_embeddings=context, head_dim=64)
    assert bundle.manifest.shape.context_length == context
    tables = 4 * ROPE_POSITIONS * 32 * 4
    assert bundle.size < 4 * bundle.manifest.shape.parameters + tables + 300_000


def test_a_table_grown_in_steps_is_the_one_made_at_once():
    ropes = {
        "rope": RopeSpec(1e6, 64, "llama3", factor=8.0, original_context=500),
        "local_rope": RopeSpec(
            1e4, 8, "longrope", original_context=300,
            short_factors=(1.0, 1.5, 2.0, 3.0), long_factors=(1.0, 2.0, 4.0, 9.0),
        ),
    }  # fmt: skip
    grown = RopeTables(ropes)
    first = dict(grown.inputs(256))
    assert grown.inputs(100) == first
    grown.inputs(513)
    last, at_once = grown.inputs(9_001), RopeTables(ropes).inputs(9_001)
    for name, value in last.items():
        np.testing.assert_array_equal(value.numpy(), at_once[name].numpy())
        np.testing.assert_array_equal(value.numpy()[:256], first[name].numpy())
    assert last["local_rope.cos"].shape() == [9_301, 4]


@pytest.mark.parametrize(
    "rope",
    [
        RopeSpec(1e4, 16),
        RopeSpec(5e5, 64, "linear", factor=4.0),
        RopeSpec(5e5, 64, "llama3", factor=32.0, original_context=64),
        RopeSpec(1e6, 32, "yarn", factor=4.0, original_context=64, attention_factor=1.1386),
    ],
)
def test_tables_are_the_published_formula(rope):
    length = 300
    angles = np.arange(length)[:, None] * frequencies_of(rope, length)
    for table, exact in zip(rope_tables(rope, length), (np.cos, np.sin), strict=True):
        # An angle of 300 has steps of 3e-5 in float32.
        np.testing.assert_allclose(table, exact(angles) * rope.attention_factor, atol=4e-5)
