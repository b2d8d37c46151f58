"""GGUF bundles: what an export leaves, and that an engine computes with it what the model does."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.quality.evaluation_text import EvaluationText
from edgesdk_export.recipes import load_recipe
from edgesdk_export.recipes.sections import CalibrationRecipe
from edgesdk_export.weights import read_whole
from support.tiny_models import make_tiny

import edgesdk
from edgesdk.bundle.opening import Bundle, verify_bundle
from edgesdk.engines.registry import open_engine
from edgesdk.errors import ExportError, RequestError

pytest.importorskip("llama_cpp")

pytestmark = pytest.mark.integration

TEXT = EvaluationText("fox.txt", "the quick brown fox jumps over the lazy dog " * 400)
TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(40)]


def bundle_of(source: Path, target: Path, **settings) -> Bundle:
    job = ExportJob(
        checkpoint=source,
        destination=target,
        name="tiny",
        **{"format": "gguf", "quality_tokens": 512, "text": TEXT, **settings},
    )
    return export(job, SilentProgress())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A llama of two blocks of 256 to a row, and the folder that it is saved in."""
    folder = tmp_path_factory.mktemp("tiny") / "hf"
    return make_tiny("llama", folder, hidden_size=256, intermediate_size=512), folder


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """Called with a format and a scheme: the bundle, exported once for all tests of this file."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def export_once(fmt: str, scheme: str) -> Bundle:
        return bundle_of(checkpoint[1], folder / scheme, format=fmt, scheme=scheme)

    return export_once


def test_a_bundle_is_whole_and_says_what_it_is(checkpoint, exported):
    model, _ = checkpoint
    bundle = exported("gguf", "f32")
    verify_bundle(bundle)
    manifest = bundle.manifest
    assert (manifest.format, manifest.target) == ("gguf", "cpu")
    assert manifest.roles == {"decoder": "model.gguf"}
    assert manifest.quantization.weights == "f32"
    assert manifest.quantization.bits_per_weight == 32
    assert manifest.quality is not None
    assert manifest.quality.kl_mean < 1e-9
    assert sorted(path.name for path in bundle.path.iterdir()) == [
        "chat_template.jinja",
        "edgesdk.json",
        "model.gguf",
        "recipe.toml",
        "tokenizer.json",
    ]
    stored = load_recipe(str(bundle.file("recipe.toml")))
    assert stored.gguf is not None
    assert (stored.name, stored.gguf.type, stored.onnx) == ("fast", "f32", None)
    engine = open_engine(bundle)
    state = engine.new_state()
    ours = state.extend(TOKENS, logits="all")
    state.close()
    engine.close()
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0].numpy()
    # The engine's KV cache is float16.
    np.testing.assert_allclose(ours, theirs, atol=0.05 * np.abs(theirs).max())


def test_fewer_bits_cost_more_and_the_quality_says_so(exported):
    bundles = [exported("gguf", kind) for kind in ("q8_0", "q4_k_m", "q2_k")]
    losses = [bundle.manifest.quality.kl_mean for bundle in bundles]
    assert losses == sorted(losses)
    assert [bundle.manifest.quantization.head for bundle in bundles] == ["q8_0", "q6_k", "q6_k"]
    sizes = [bundle.size for bundle in bundles]
    assert sizes == sorted(sizes, reverse=True)


def test_a_bundle_answers(exported):
    with edgesdk.load(exported("gguf", "q4_k_m").path) as model:
        assert model.respond("fox", max_tokens=4).receipt.output_tokens > 0


@pytest.mark.parametrize("fmt", ["onnx", "gguf"])
@pytest.mark.parametrize("bits", ["few", "all"])
def test_the_same_inputs_give_the_same_bytes(fmt, bits, checkpoint, exported, tmp_path):
    schemes = {"onnx": ("int4", "fp32"), "gguf": ("q4_k_m", "f32")}[fmt]
    scheme = schemes[bits == "all"]
    made = [
        exported(fmt, scheme),
        bundle_of(checkpoint[1], tmp_path / "two", format=fmt, scheme=scheme),
    ]
    one, two = ({path.name: path.read_bytes() for path in bundle.path.iterdir()} for bundle in made)
    assert one == two


def test_a_stored_recipe_makes_the_same_bundle_again(checkpoint, exported, tmp_path):
    once = exported("gguf", "iq4_nl")
    recipe = load_recipe(str(once.file("recipe.toml")))
    again = bundle_of(checkpoint[1], tmp_path / "two", recipe=recipe)
    assert once.manifest == again.manifest


def test_an_onnx_recipe_changes_the_bundle(checkpoint, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[onnx]\nbits = 4\nblock = 64\nsymmetric = true\n")
    settings = {"format": "onnx", "recipe": load_recipe(str(path)), "quality_tokens": 0}
    mine = bundle_of(checkpoint[1], tmp_path / "b", **settings)
    assert mine.manifest.quantization.weights == "int4-symmetric"
    assert "block 64" in mine.manifest.quantization.method
    assert 'name = "mine"' in mine.file("recipe.toml").read_text()


def test_what_cannot_be_made_leaves_nothing(checkpoint, tmp_path):
    broken = make_tiny("qwen3", tmp_path / "hf")
    assert broken is not None
    with pytest.raises(ExportError, match="qkv bias"):
        bundle_of(tmp_path / "hf", tmp_path / "out" / "b")
    with pytest.raises(RequestError, match="'int4'"):
        bundle_of(checkpoint[1], tmp_path / "out" / "b", scheme="int4")
    with pytest.raises(RequestError, match="optimum makes no GGUF"):
        bundle_of(checkpoint[1], tmp_path / "out" / "b", via="optimum")
    path = tmp_path / "mine.toml"
    path.write_text("[gguf]\nmethod = 'magic'\n")
    with pytest.raises(ExportError, match="'magic' is not available"):
        bundle_of(checkpoint[1], tmp_path / "out" / "b", recipe=load_recipe(str(path)))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_text_too_short_leaves_nothing(checkpoint, tmp_path):
    with pytest.raises(ExportError, match=r"short\.txt"):
        bundle_of(checkpoint[1], tmp_path / "b", text=EvaluationText("short.txt", "hello"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A model whose small weights do not blow every error up."""
    folder = tmp_path_factory.mktemp("calm") / "hf"
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    make_tiny("llama", folder, initializer_range=0.02, **sizes)
    return folder


@pytest.fixture(scope="module")
def plain_bundle(calm, tmp_path_factory):
    """Called with a format and a scheme: the bundle of the calm model without calibration."""
    folder = tmp_path_factory.mktemp("plain")

    @functools.cache
    def export_once(fmt: str, scheme: str) -> Bundle:
        return bundle_of(calm, folder / scheme, format=fmt, scheme=scheme, quality_tokens=1024)

    return export_once


CALIBRATED = {
    "onnx balanced": ("onnx", "int4", "balanced", "importance weights"),
    "onnx best": ("onnx", "int4", "best", "GPTQ"),
    "gguf balanced": ("gguf", "q4_k_m", "balanced", "with importance weights"),
}


@pytest.mark.parametrize("case", CALIBRATED)
def test_recipes_that_calibrate_come_closer_to_the_checkpoint(case, calm, plain_bundle, tmp_path):
    """Calibrated on the text that is measured, so that chance has no part in it."""
    fmt, scheme, name, method = CALIBRATED[case]
    settings = {"format": fmt, "scheme": scheme, "quality_tokens": 1024}
    plain = plain_bundle(fmt, scheme)
    recipe = load_recipe(name).model_copy(update={"calibration": CalibrationRecipe(tokens=4096)})
    made = [
        bundle_of(
            calm,
            tmp_path / copy,
            recipe=recipe,
            calibration_text=EvaluationText("long", TEXT.text * 2),
            **settings,
        )
        for copy in ("one", "two")
    ]
    assert made[0].manifest.quality.kl_mean < plain.manifest.quality.kl_mean
    assert method in made[0].manifest.quantization.method
    assert "[calibration]" in made[0].file("recipe.toml").read_text()
    assert made[0].manifest == made[1].manifest


@pytest.mark.parametrize("kind", ["q4_0", "q2_k"])
def test_a_gguf_s_own_blocks_of_the_same_type_are_kept(kind, exported, tmp_path):
    """Rounding Q2_K again, for one, would not give the same blocks."""
    source = exported("gguf", kind).file("model.gguf")
    again = bundle_of(source, tmp_path / "two", scheme=kind)
    tensors, others = (open_checkpoint(path).tensors for path in (source, again.file("model.gguf")))
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == others[name].dtype
        np.testing.assert_array_equal(read_whole(tensor), read_whole(others[name]))
    kept = again.manifest.quantization.source_blocks
    assert sum(entry.tensors for entry in kept) == 3 * 7 + 2
    assert again.manifest.quality.kl_mean < 1e-9
    other = bundle_of(source, tmp_path / "three", scheme="q8_0", quality_tokens=0)
    assert other.manifest.quantization.source_blocks == ()
