"""GGUF files that we write, judged by llama.cpp: it loads them, gives transformers' logits and the
tokenizer's ids, and its own quantizer writes the same tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
from edgesdk_export.calibration.importance import gguf_names
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.checkpoint.gguf_reader import read_gguf_contents
from edgesdk_export.families import read_decoder
from edgesdk_export.gguf import (
    file_type_named,
    file_type_names,
    vocabulary_metadata,
    write_gguf,
)
from edgesdk_export.tokenizers import read_text
from support.reference_decoder import logits_of
from support.tiny_models import make_tiny

from edgesdk.errors import ExportError

pytest.importorskip("llama_cpp")
import llama_cpp
from support.tiny_ggufs import llama_cpp_logits

pytestmark = pytest.mark.integration

TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(40)]

# By variant: overrides that switch off what llama.cpp cannot compute, how many tokens its context
# holds, and the tolerance. llama.cpp looks gelu up in a table of float16.
CASES = {
    "llama": ({}, 40, 5e-4),
    "llama-biased": ({}, 40, 5e-4),
    "llama-tied": ({}, 40, 5e-4),
    "llama-linear": ({}, 40, 5e-4),
    "llama-llama3": ({}, 40, 5e-4),
    "mistral": ({}, 8, 5e-4),
    "qwen2": ({}, 40, 5e-4),
    "qwen2-windowed": ({}, 8, 5e-4),
    "qwen2-yarn": ({}, 40, 5e-4),
    "qwen3": ({"attention_bias": False}, 40, 5e-4),
    "gemma2": ({"query_pre_attn_scalar": 32}, 40, 2e-2),
    "gemma3": ({"query_pre_attn_scalar": 32}, 40, 2e-2),
    "phi3": ({}, 24, 5e-4),
    "phi3-longrope": ({}, 40, 5e-4),
}


def write(source: Path, target: Path, kind: str = "f32", **settings) -> Path:
    checkpoint = open_checkpoint(source)
    decoder = read_decoder(checkpoint)
    size = decoder.spec.vocab_size
    vocabulary = vocabulary_metadata(checkpoint, read_text(checkpoint), size)
    write_gguf(
        decoder,
        target,
        file_type_named(kind),
        name=checkpoint.name,
        vocabulary=vocabulary,
        **settings,
    )
    return target


@pytest.mark.parametrize("variant", CASES)
def test_llama_cpp_gives_the_logits_of_transformers(variant, tmp_path):
    overrides, length, tolerance = CASES[variant]
    model = make_tiny(variant, tmp_path / "hf", **overrides)
    path = write(tmp_path / "hf", tmp_path / "tiny.gguf")
    tokens = TOKENS[:length]
    with torch.no_grad():
        theirs = model(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(llama_cpp_logits(path, tokens), theirs, atol=tolerance)
    decoder = read_decoder(open_checkpoint(path))
    assert decoder.spec.context_length == (256 if length == 40 else length)
    np.testing.assert_allclose(logits_of(decoder, tokens), theirs, atol=2e-4)


@pytest.mark.parametrize("variant", ["llama-llama3", "gemma3", "phi3-longrope", "qwen2-yarn"])
def test_a_gguf_written_again_is_the_same_file(variant, tmp_path):
    make_tiny(variant, tmp_path / "hf", **CASES[variant][0])
    once = write(tmp_path / "hf", tmp_path / "hf.gguf")
    twice = write(once, tmp_path / "again.gguf")
    assert once.read_bytes() == twice.read_bytes()


def quantized_by_llama_cpp(source: Path, target: Path, kind: str) -> Path:
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 1
    params.ftype = file_type_named(kind).number
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0
    return target


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    raw = path.read_bytes()
    return {
        info.name: (info.type.name, info.shape, raw[info.offset : info.offset + info.size])
        for info in read_gguf_contents(path).tensors
    }


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    mine, others = tensors_of(ours), tensors_of(theirs)
    assert {name: found[:2] for name, found in mine.items()} == {
        name: found[:2] for name, found in others.items()
    }
    assert [name for name in mine if mine[name] != others[name]] == []
    assert (
        read_gguf_contents(ours).metadata["general.file_type"]
        == read_gguf_contents(theirs).metadata["general.file_type"]
    )


# Widths that 256 divides and that only 32 does; few and many heads to a value
# head; tied and not; and the fused matrices of phi3. Eight layers have all that mixtures tell apart
# but the first sixteenth.
SHAPES = {
    "grouped": ("llama", {"num_attention_heads": 8, "num_key_value_heads": 2}),
    "paired-tied": ("qwen2", {"num_key_value_heads": 2}),
    "narrow": ("llama-tied", {"hidden_size": 96, "num_hidden_layers": 2, "head_dim": 24}),
    "fused": ("phi3", {"num_hidden_layers": 9}),
    "deep": ("llama", {"num_hidden_layers": 17, "num_attention_heads": 2}),
}
_WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 8}


@pytest.fixture(scope="module", params=SHAPES)
def wide(request, tmp_path_factory):
    """A checkpoint, and the F32 file of it."""
    variant, overrides = SHAPES[request.param]
    folder = tmp_path_factory.mktemp("wide")
    make_tiny(variant, folder / "hf", **{**_WIDE, **overrides})
    return folder / "hf", write(folder / "hf", folder / "f32.gguf")


@pytest.mark.parametrize("kind", [kind for kind in file_type_names() if kind != "f32"])
def test_one_step_gives_the_tensors_of_llama_cpp_s_quantizer(kind, wide, tmp_path):
    checkpoint, f32 = wide
    theirs = quantized_by_llama_cpp(f32, tmp_path / "theirs.gguf", kind)
    assert_same_tensors(write(checkpoint, tmp_path / "ours.gguf", kind), theirs)


def test_one_step_on_a_real_model(smollm2_gguf, tmp_path):
    """SmolLM2's rows are of 576 and 1,536 values: K-quants with and without their fallbacks."""
    f32 = write(smollm2_gguf, tmp_path / "f32.gguf")
    theirs = quantized_by_llama_cpp(f32, tmp_path / "theirs.gguf", "q4_k_m")
    f32.unlink()
    assert_same_tensors(write(smollm2_gguf, tmp_path / "ours.gguf", "q4_k_m"), theirs)


@pytest.mark.parametrize("kind", ["q4_0", "q4_k_m", "iq4_xs", "q2_k"])
def test_importance_weighs_as_in_llama_cpp_s_quantizer(kind, tmp_path):
    """Given for every matrix but the embedding and one other, as imatrix files have it."""
    make_tiny("llama", tmp_path / "hf", **_WIDE)
    f32 = write(tmp_path / "hf", tmp_path / "f32.gguf")
    rng = np.random.default_rng(5)
    importance = {
        info.name: rng.exponential(size=info.shape[-1]).astype(np.float32)
        for info in read_gguf_contents(f32).tensors
        if info.name.startswith("blk.")
        and len(info.shape) > 1
        and info.name != "blk.3.ffn_up.weight"
    }
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = 1, file_type_named(kind).number
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), len(values)
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params.imatrix = ctypes.cast(entries, type(params.imatrix))
    theirs = tmp_path / "theirs.gguf"
    assert llama_cpp.llama_model_quantize(str(f32).encode(), str(theirs).encode(), params) == 0
    ours = write(tmp_path / "hf", tmp_path / "ours.gguf", kind, importance=importance)
    assert_same_tensors(ours, theirs)
    assert tensors_of(ours) != tensors_of(write(tmp_path / "hf", tmp_path / "plain.gguf", kind))


REFUSED = {
    "qwen3": ({}, "qkv bias .* 'qwen3'"),
    "gemma2": ({}, "attention scale of 0.204"),
    "gemma3": ({}, "attention scale of 0.204"),
    "qwen2": (
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        "llama3 rope .* 'qwen2'",
    ),
}


@pytest.mark.parametrize("variant", REFUSED)
def test_what_llama_cpp_would_compute_differently_is_refused(variant, tmp_path):
    overrides, message = REFUSED[variant]
    make_tiny(variant, tmp_path / "hf", **overrides)
    with pytest.raises(ExportError, match=message):
        write(tmp_path / "hf", tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_a_weight_that_float16_cannot_hold_is_named(tmp_path):
    model = make_tiny("llama", tmp_path / "hf")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 70_000
    model.save_pretrained(tmp_path / "hf")
    with pytest.raises(ExportError, match=r"blk\.1\.ffn_up\.weight \(layers\.1\.up\.weight\).*F16"):
        write(tmp_path / "hf", tmp_path / "x.gguf", "f16")
    write(tmp_path / "hf", tmp_path / "x.gguf", "bf16")


@pytest.mark.parametrize("variant", ["llama", "phi3"])
def test_importance_is_named_as_the_tensors_are(variant, tmp_path):
    make_tiny(variant, tmp_path / "hf")
    spec = read_decoder(open_checkpoint(tmp_path / "hf")).spec
    named = {name for names in gguf_names(spec).values() for name in names}
    matrices = {
        info.name
        for info in read_gguf_contents(write(tmp_path / "hf", tmp_path / "x.gguf")).tensors
        if info.name.startswith("blk.") and len(info.shape) > 1
    }
    assert named == matrices
