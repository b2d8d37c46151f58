"""Adapters against peft's merged models: the same logits, each its own, and never another's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edgesdk_export.adapters.export import AdapterJob, export_adapter
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.peft_adapters import save_lora
from support.tiny_models import make_tiny

from edgesdk.engines.registry import open_engine

pytestmark = pytest.mark.integration

# Past every window.
TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(40)]
TOLERANCE = 1e-3
SCHEMES = {"onnx": "fp32", "gguf": "f32"}


def logits_of(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def export_tiny(checkpoint, destination, form, *, scheme=None):
    return export(
        ExportJob(
            checkpoint=checkpoint,
            destination=destination,
            name="tiny",
            format=form,
            scheme=scheme or SCHEMES[form],
            quality_tokens=0,
        ),
        SilentProgress(),
    )


def adapted(model, folder, bundle, name, **settings):
    """An adapter of a random LoRA, and the logits of peft's merged model."""
    merged = save_lora(model, folder / f"{name}-peft", **settings)
    adapter = export_adapter(AdapterJob(folder / f"{name}-peft", bundle.path, folder / name, name))
    return adapter, merged


@pytest.fixture
def float32_caches(monkeypatch):
    """Caches and attention of llama.cpp in float32. Its float16 moves these logits by a
    hundredth, with an adapter or without."""
    llama_cpp = pytest.importorskip("llama_cpp.llama_cpp")
    defaults = llama_cpp.llama_context_default_params

    def with_float32():
        params = defaults()
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return params

    monkeypatch.setattr(llama_cpp, "llama_context_default_params", with_float32)


@pytest.mark.parametrize("form", SCHEMES)
@pytest.mark.parametrize("variant", ["llama-biased", "qwen2", "gemma3", "phi3"])
@pytest.mark.usefixtures("float32_caches")
def test_logits_are_those_of_pefts_merged_model(variant, form, tmp_path):
    # llama.cpp knows one attention scale for gemma3, and no windows for phi3.
    odd = {"gemma3": {"query_pre_attn_scalar": 32}, "phi3": {"sliding_window": None}}
    model = make_tiny(variant, tmp_path / "checkpoint", **odd.get(variant, {}))
    bundle = export_tiny(tmp_path / "checkpoint", tmp_path / "bundle", form)
    targets = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"] if variant == "phi3" else None
    settings = {} if targets is None else {"target_modules": targets}
    adapter, merged = adapted(
        model,
        tmp_path,
        bundle,
        "first",
        use_rslora=True,
        rank_pattern={"o_proj": 2},
        alpha_pattern={"layers.1.mlp.down_proj": 20},
        **settings,
    )
    # Its gelu comes from a table of float16.
    tolerance = 2e-2 if (variant, form) == ("gemma3", "gguf") else TOLERANCE
    engine = open_engine(bundle, "cpu", adapter=adapter)
    state = engine.new_state()
    whole = state.extend(TOKENS, logits="all").copy()
    np.testing.assert_allclose(whole, logits_of(merged, TOKENS), atol=tolerance)
    assert np.abs(whole - logits_of(model, TOKENS)).max() > 0.1
    # Token by token, with the batch that verifies drafts, and in a fork.
    state.rewind(20)
    steps = np.concatenate([state.extend([token]).copy() for token in TOKENS[20:24]])
    np.testing.assert_allclose(steps, whole[20:24], atol=tolerance)
    fork = state.fork()
    each = fork.extend(TOKENS[24:30], logits="each")
    np.testing.assert_allclose(each, whole[24:30], atol=tolerance)
