"""Recipes: what a file may say, and what is said of one that says something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgesdk_export.npu.static_scheme import static_scheme
from edgesdk_export.onnx.scheme import WeightScheme
from edgesdk_export.recipes import load_recipe, recipe_names
from edgesdk_export.recipes.recipe import Recipe
from edgesdk_export.recipes.sections import CalibrationRecipe, GgufRecipe, OnnxRecipe
from edgesdk_quantize.formats import (
    CodedScales,
    Int4,
    Int4Offset,
    Int4Symmetric,
    Int8,
    Int8Symmetric,
)
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.engines.devices import STATIC_BLOCKS, STATIC_CHANNELS
from edgesdk.errors import ExportError, RequestError

SMALL, LARGE = 134_515_008, 1_500_000_000


def recipe_of(text: str, folder: Path) -> Recipe:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(str(path))


def test_fast_is_what_an_export_without_a_recipe_has_always_done():
    fast = load_recipe("fast")
    assert fast.onnx_scheme(SMALL) == WeightScheme.named("int8")
    assert fast.onnx_scheme(LARGE) == WeightScheme.named("int4")
    for name in ("fp32", "fp16", "int8", "int4"):
        assert fast.with_weights("onnx", name).onnx_scheme(LARGE) == WeightScheme.named(name)
    assert (fast.gguf_type(SMALL).name, fast.gguf_type(LARGE).name) == ("q8_0", "q4_k_m")
    assert fast.with_weights("gguf", "Q6_K").gguf_type(SMALL).name == "q6_k"


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_can_be_made_and_say_what_they_are_for(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary
    recipe.require("onnx")
    recipe.require("gguf")


def test_a_file_says_only_what_it_changes(tmp_path):
    recipe = recipe_of(
        "[onnx]\nbits = 4\nblock = 64\nsymmetric = true\nembedding = 'int8'", tmp_path
    )
    assert recipe.name == "mine"
    scheme = recipe.onnx_scheme(SMALL)
    assert scheme.linear == Int4Symmetric(64)
    assert scheme.embedding == Int8(64)
    with pytest.raises(RequestError, match=r"mine has no section \[gguf\]"):
        recipe.require("gguf")


WRONG = {
    "[onnx]\nblok = 32": r"mine\.toml has the unknown key 'onnx\.blok'. Did you mean 'block'\?",
    "[onx]\nbits = 4": r"mine\.toml has the unknown key 'onx'. Did you mean 'onnx'\?",
    "speed = 3": r"unknown key 'speed'. Known are name, summary, onnx, gguf, litert, static",
    "[onnx]\nbits = 3": r'onnx\.bits: .*3 is none of "auto", 4, 8, 16, 32, nor .* 5\.5',
    "[onnx]\nbits = '4'": r"onnx\.bits: .*'4' is none",
    "[calibration]\ntoken = 9": r"'calibration\.token'. Did you mean 'tokens'",
    "[onnx]\nsymmetric = 1": r"onnx\.symmetric: .*bool",
    "[gguf]\ntype = 'q4_k_x'": r"gguf\.type: .*'q4_k_x' is none of auto, f32, f16",
    "[gguf\n": r"mine\.toml is not TOML: .*line 1",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_file_is_named_with_what_was_wrong(text, tmp_path):
    with pytest.raises(RequestError, match=WRONG[text]):
        recipe_of(text, tmp_path)


def test_a_file_that_is_no_text_or_not_there(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="is not TOML"):
        load_recipe(str(tmp_path / "x.toml"))
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        load_recipe(str(tmp_path / "y.toml"))
    with pytest.raises(
        RequestError, match=r"no recipe 'fats'; there are .*fast.*Did you mean fast"
    ):
        load_recipe("fats")


def test_a_method_that_is_not_there_is_refused(tmp_path):
    recipe = recipe_of("[onnx]\nmethod = 'magic'\n[gguf]\n", tmp_path)
    recipe.require("gguf")
    with pytest.raises(ExportError, match="mine: the method 'magic' is not available for onnx"):
        recipe.require("onnx")


def test_a_budget_needs_a_method_that_measures(tmp_path):
    for text in (
        "bits = 5.5",
        "bits = 4\nawq = true",
        "bits = 4\noffsets = true\nscales = 'uint8'",
    ):
        with pytest.raises(RequestError, match=r"calibrates|measured with a text"):
            recipe_of(f"[onnx]\n{text}", tmp_path).require("onnx")
    best = load_recipe("best").with_weights("onnx", "5.5")
    best.require("onnx")
    assert best.calibration_for("onnx", None).bits == 5.5
    assert load_recipe("fast").calibration_for("onnx", None) is None


@pytest.mark.parametrize("key", ["symmetric = true", "sweeps = 2"])
def test_scales_in_8_bits_do_not_go_with_what_changes_them(key, tmp_path):
    text = f"[onnx]\nmethod = 'gptq'\nbits = 4\n{key}\n"
    recipe_of(text, tmp_path).require("onnx")
    with pytest.raises(RequestError, match=f"mine: {key.split()[0]} .*scales"):
        recipe_of(text + "scales = 'uint8'\n", tmp_path).require("onnx")


@pytest.mark.parametrize("key", ["symmetric = true", "scales = 'float32'"])
def test_offsets_do_not_go_with_other_scales(key, tmp_path):
    text = "[onnx]\nmethod = 'gptq'\nbits = 4\noffsets = true\n"
    recipe_of(text + "scales = 'uint8'\n", tmp_path).require("onnx")
    with pytest.raises(RequestError, match=r"mine: blocks with offsets"):
        recipe_of(text + key + "\n", tmp_path).require("onnx")


def test_offsets_are_of_layers_in_4_bits(tmp_path):
    text = "[onnx]\nmethod = 'gptq'\noffsets = true\nscales = 'uint8'\n"
    four = recipe_of(text + "bits = 4\n", tmp_path).onnx_scheme(LARGE)
    assert four.linear == Int4Offset()
    assert (four.embedding_for(True, 64), four.embedding_for(False, 64)) == (
        four.embedding,
        CodedScales(Int4()),
    )
    eight = recipe_of(text + "bits = 8\n", tmp_path).onnx_scheme(LARGE)
    assert eight.linear == CodedScales(Int8())
    assert eight.embedding_for(False, 64) == eight.embedding


def test_scales_in_8_bits_are_those_of_embedding_and_layers(tmp_path):
    text = "[onnx]\nbits = 4\nscales = 'uint8'\n"
    scheme = recipe_of(text, tmp_path).onnx_scheme(SMALL)
    assert scheme.linear == CodedScales(Int4())
    assert scheme.embedding == CodedScales(Int8Symmetric())


@pytest.mark.parametrize("fmt", ["onnx", "gguf"])
def test_weights_that_a_format_has_not_are_refused(fmt):
    with pytest.raises(RequestError, match="'int3'"):
        load_recipe("fast").with_weights(fmt, "int3")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
onnx = st.builds(
    OnnxRecipe,
    bits=st.sampled_from(["auto", 4, 8, 16, 32, 4.5]),
    awq=st.booleans(),
    sweeps=st.integers(0, 100),
    scales=st.sampled_from(["float32", "uint8"]),
    offsets=st.booleans(),
    block=st.sampled_from([16, 32, 64, 128]),
    symmetric=st.booleans(),
    embedding=st.sampled_from(["auto", "int8", "int8-symmetric", "fp16", "fp32"]),
)
gguf = st.builds(GgufRecipe, type=st.sampled_from(["auto", "q4_k_m", "f16"]))
recipes = st.builds(
    Recipe,
    name=texts,
    summary=texts,
    onnx=st.none() | onnx,
    gguf=st.none() | gguf,
    calibration=st.none() | st.builds(CalibrationRecipe, tokens=st.integers(512, 9000)),
)


@given(recipe=recipes)
def test_what_is_stored_reads_back_as_what_it_was(recipe, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "again.toml"
    path.write_bytes(recipe.to_toml().encode())
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize(
    ("name", "parameters", "bits"),
    [("fast", 100_000_000, 16), ("fast", 1_000_000_000, 4), ("best", 100_000_000, 4)],
)
def test_graphs_of_fixed_shapes_have_symmetric_blocks_or_floats(name, parameters, bits):
    recipe = load_recipe(name).for_static(parameters, prefill=64, window=None)
    assert recipe.onnx.bits == bits
    assert (recipe.onnx.symmetric, recipe.onnx.offsets, recipe.onnx.scales) == (
        True,
        False,
        "float32",
    )
    assert (recipe.static.prefill, recipe.static.window) == (64, "auto")
    assert recipe.resolved_for("onnx", parameters).static == recipe.static


def test_graphs_of_fixed_shapes_mix_no_formats():
    recipe = load_recipe("best").with_weights("onnx", "5.5")
    with pytest.raises(RequestError, match="graphs of fixed shapes have weights of one format"):
        recipe.for_static(100_000_000, prefill=None, window=None)


@pytest.mark.parametrize(
    ("weights", "graph", "activations", "stored"),
    [
        ("fp32", STATIC_BLOCKS, "auto", "fp32"),
        ("fp16", STATIC_CHANNELS, "auto", "fp16"),
        ("int4", STATIC_BLOCKS, "auto", "int4-symmetric"),
        ("int4", STATIC_BLOCKS, "uint16", "a16w4"),
        ("int8", STATIC_BLOCKS, "auto", "a16w8"),
        ("int4", STATIC_CHANNELS, "auto", "w4"),
        ("int8", STATIC_CHANNELS, "float16", "w8"),
    ],
)
def test_a_target_has_the_weights_that_it_keeps(weights, graph, activations, stored):
    scheme = static_scheme(WeightScheme.named(weights), graph, activations=activations)
    assert scheme.linear.name == stored
    assert scheme.quantizes_activations == stored.startswith("a16")


@pytest.mark.parametrize(
    ("weights", "activations", "hint"),
    [("fp16", "uint16", "--bits 4 or 8"), ("int8", "float16", "--bits 4")],
)
def test_weights_that_no_npu_runs_so(weights, activations, hint):
    with pytest.raises(RequestError) as caught:
        static_scheme(WeightScheme.named(weights), STATIC_BLOCKS, activations=activations)
    assert hint in caught.value.hint
