"""Quantization-aware training: what a student trained in is what an export stores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edgesdk_export.calibration.channel_scales import apply_awq
from edgesdk_export.calibration.format_mix import one_format
from edgesdk_export.calibration.quantizers import SequentialQuantizer
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.checkpoint.safetensors_reader import read_safetensors
from edgesdk_export.checkpoint.trained_blocks import TRAINED_BLOCKS_FILE
from edgesdk_export.distill.quantization_aware import (
    EXPORT_RECIPE_FILE,
    quantized_student,
    save_blocks,
)
from edgesdk_export.distill.quantize_recipe import QuantizeRecipe
from edgesdk_export.distill.recipe import DistillRecipe
from edgesdk_export.distill.run import DistillJob, distill
from edgesdk_export.distill.samples import Sample
from edgesdk_export.distill.students import load_trainable, save_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.onnx.stored_weights import matrix_parts, read_stored
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.quality.evaluation_text import Windows, text_from_file
from edgesdk_export.quality.layerwise import compare
from edgesdk_export.quality.layerwise_models import LayerwiseCheckpoint, LayerwiseOnnxModel
from edgesdk_export.recipes.recipe import load_recipe
from edgesdk_export.recipes.sections import CalibrationRecipe
from edgesdk_export.weights import read_whole
from edgesdk_quantize.formats import PackedMatrix
from edgesdk_quantize.methods.gptq import RoundingOptions
from support.tiny_models import make_tiny

from edgesdk.errors import DamagedCheckpoint, RequestError

pytestmark = pytest.mark.integration

IDS = torch.arange(40)[None] * 7 % 256
ONNX = [
    {"weights": "int4"},
    {"weights": "int4-128"},
    {"weights": "int4-symmetric-32"},
    {"weights": "int4-128", "scales": "uint8", "embedding": "int8"},
    {"weights": "int4-offset-32"},
    {"weights": "int4-32", "embedding": "fp16"},
]
GGUF = [{"weights": "q4_0"}, {"weights": "q4_k_s"}, {"weights": "q4_k_m"}]


def name_of(settings):
    return "-".join(settings.values())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Rows of 256, as Q4_K wants them; a head that is not tied."""
    folder = tmp_path_factory.mktemp("checkpoint")
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
    make_tiny("llama", folder, initializer_range=0.06, **sizes)
    return folder


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"{i} times {i} is {i * i}." for i in range(150)))
    return path


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits[0]


def trained(checkpoint, folder, settings):
    """A student whose scales and weights have moved, saved; and its logits in training."""
    recipe = QuantizeRecipe.model_validate(settings)
    student = load_trainable(checkpoint)
    quantized = quantized_student(student.model, checkpoint, recipe)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.model.named_parameters():
            if parameter.requires_grad:
                size = 0.003 if name.endswith("moves") else 0.002
                parameter += size * torch.randn_like(parameter)
    seen = logits_of(student.model)
    save_blocks_of(student, quantized, recipe, folder)
    return seen


def save_blocks_of(student, quantized, recipe, folder):
    blocks = quantized.finish()
    folder.mkdir()
    save_checkpoint(student, folder)
    save_blocks(folder, blocks, recipe)


def exported(student, folder, recipe=None, **settings):
    job = ExportJob(
        student,
        folder,
        "student",
        recipe=recipe or load_recipe(str(student / EXPORT_RECIPE_FILE)),
        quality_tokens=0,
        **settings,
    )
    return export(job, SilentProgress())


def stored_values(tensors, name, columns):
    """A matrix of a bundle as its graph computes with it, by the layout that ONNX documents."""

    def array(part):
        return tensors[f"{name}.{part}"].numpy() if f"{name}.{part}" in tensors else None

    if (floats := array("weight")) is not None:
        return floats.astype(np.float32)
    codes, scales = array("codes"), array("scales")
    if scales is None:
        scales = array("scale_codes").astype(np.float32) * array("scale_units")
    if codes is None:  # an embedding that is only looked up
        codes = array("rows").reshape(*scales.shape, -1)
    bits = 4 if codes.shape[1] * codes.shape[2] < columns else 8
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    zeros = array("zero_points")
    if zeros is None:
        zeros = np.full(scales.shape, 1 << (bits - 1), np.uint8)
    elif bits == 4:
        zeros = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(len(zeros), -1)
    zeros = zeros[:, : scales.shape[1]].astype(np.float32)
    values = (codes.astype(np.float32) - zeros[..., None]) * scales[..., None]
    if f"{name}.offsets.codes" in tensors:
        values += stored_values(tensors, f"{name}.offsets", scales.shape[1])[..., None]
    return values.reshape(len(values), -1)[:, :columns]


def assert_stored(bundle, student):
    """An ONNX bundle's matrices have just the checkpoint's values."""
    decoder = read_decoder(open_checkpoint(student))
    tensors = read_stored(bundle.role_file("decoder"))
    for matrix, parts in matrix_parts(decoder.spec).items():
        expected = np.concatenate([read_whole(decoder.weights[f"{part}.weight"]) for part in parts])
        found = stored_values(tensors, matrix, expected.shape[1])
        np.testing.assert_array_equal(found, expected, err_msg=matrix)


@pytest.mark.parametrize("settings", ONNX, ids=name_of)
def test_a_bundle_holds_what_was_trained(checkpoint, settings, tmp_path):
    student = tmp_path / "student"
    seen = trained(checkpoint, student, settings)
    # transformers computes with the values that training saw.
    assert torch.equal(logits_of(load_trainable(student).model), seen)
    bundle = exported(student, tmp_path / "bundle")
    assert_stored(bundle, student)
    decoder = read_decoder(open_checkpoint(student))
    found = compare(
        LayerwiseCheckpoint(decoder),
        LayerwiseOnnxModel(decoder.spec, bundle.role_file("decoder")),
        Windows(IDS.numpy()),
        progress=lambda *_: None,
    )
    # What is left is the kernels' rounding of inputs.
    assert found.kl.mean() < 2e-3


@pytest.mark.parametrize("settings", GGUF, ids=name_of)
def test_a_gguf_holds_what_was_trained(checkpoint, settings, tmp_path):
    student = tmp_path / "student"
    seen = trained(checkpoint, student, settings)
    assert torch.equal(logits_of(load_trainable(student).model), seen)
    bundle = exported(student, tmp_path / "bundle", format="gguf")
    ours = read_decoder(open_checkpoint(student))
    theirs = read_decoder(open_checkpoint(bundle.role_file("decoder")))
    for name, tensor in ours.weights.items():
        np.testing.assert_array_equal(
            read_whole(theirs.weights[name]), read_whole(tensor), err_msg=name
        )


@pytest.mark.parametrize("method", ["weighted", "gptq"])
def test_calibration_does_not_move_trained_weights(checkpoint, method, text, tmp_path):
    student = tmp_path / "student"
    trained(checkpoint, student, {"weights": "int4-32", "scales": "uint8"})
    recipe = load_recipe(str(student / EXPORT_RECIPE_FILE))
    assert recipe.onnx is not None
    section = recipe.onnx.model_copy(update={"method": method, "awq": True})
    recipe = recipe.model_copy(
        update={"onnx": section, "calibration": CalibrationRecipe(tokens=512)}
    )
    bundle = exported(student, tmp_path / "bundle", recipe, calibration_text=text_from_file(text))
    assert_stored(bundle, student)


def distilled(checkpoint, text, folder, quantize, **training):
    settings = {"steps": 40, "batch": 4, "micro_batch": 4, "learning_rate": 1e-4, "warmup": 0.1}
    recipe = DistillRecipe.model_validate(
        {
            "data": {"max_length": 32, "held_out": 0.1},
            "training": settings | training,
            "quantize": quantize,
        }
    )
    return distill(DistillJob(checkpoint, (text,), folder, recipe), SilentProgress())


@pytest.mark.parametrize("train", ["weights", "scales"])
def test_training_takes_back_what_rounding_took(checkpoint, text, train, tmp_path):
    settings = {"weights": "int4-128", "train": train}
    found = distilled(checkpoint, text, tmp_path / "student", settings)
    # Before: rounded, and not trained.
    assert found.before.kl > 0.01
    assert found.after.kl < (0.5 if train == "weights" else 0.9) * found.before.kl
    assert_stored(exported(tmp_path / "student", tmp_path / "bundle"), tmp_path / "student")


def test_scales_alone_leave_the_codes(checkpoint, text, tmp_path):
    student = load_trainable(checkpoint)
    recipe = QuantizeRecipe(weights="int4-128", train="scales")
    first = quantized_student(student.model, checkpoint, recipe).finish()
    distilled(checkpoint, text, tmp_path / "student", recipe.model_dump(), steps=5)
    path = tmp_path / "student" / TRAINED_BLOCKS_FILE
    after = read_safetensors(path)
    for name, matrix in first.items():
        assert isinstance(matrix.stored, PackedMatrix)
        np.testing.assert_array_equal(after[f"{name}|codes"].stored(), matrix.stored.data)
    moved = "model.layers.0.mlp.up_proj.weight"
    scales = after[f"{moved}|scales"].rows(0, len(first[moved].stored.scales))
    assert not np.array_equal(scales, first[moved].stored.scales)


def test_a_stopped_run_goes_on_to_the_same_student(checkpoint, text, tmp_path):
    class Stops(SilentProgress):
        def advance(self, done):
            if done == 3:
                raise KeyboardInterrupt

    settings = {"steps": 4, "save_every": 2}
    whole = distilled(checkpoint, text, tmp_path / "whole", {"weights": "int4-32"}, **settings)
    job = DistillJob(
        checkpoint,
        (text,),
        tmp_path / "stopped",
        DistillRecipe.model_validate(
            {
                "data": {"max_length": 32, "held_out": 0.1},
                "training": {"batch": 4, "micro_batch": 4, "learning_rate": 1e-4, "warmup": 0.1}
                | settings,
                "quantize": {"weights": "int4-32"},
            }
        ),
    )
    with pytest.raises(KeyboardInterrupt):
        distill(job, Stops())
    resumed = distill(job, SilentProgress())
    assert resumed.losses == whole.losses
    assert resumed.after == whole.after


# --- refusals -------------------------------------------------------------------------------------


def test_weights_that_were_changed_since_are_refused(checkpoint, tmp_path):
    student = tmp_path / "student"
    trained(checkpoint, student, {"weights": "int4-32"})
    other = load_trainable(student).model
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 3] += 0.01
    other.save_pretrained(student)
    with pytest.raises(DamagedCheckpoint, match="remove the file to round them anew"):
        exported(student, tmp_path / "bundle")
    (student / TRAINED_BLOCKS_FILE).unlink()
    exported(student, tmp_path / "bundle")


def test_heads_that_a_graph_pads_are_refused(tmp_path):
    make_tiny("llama", tmp_path, head_dim=20)
    student = load_trainable(tmp_path)
    with pytest.raises(RequestError, match="Heads of 20 values are padded"):
        quantized_student(student.model, tmp_path, QuantizeRecipe(weights="int4"))
    assert quantized_student(student.model, tmp_path, QuantizeRecipe(weights="q4_0"))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"quantize": {"weights": "int5"}}, "'int5' is none of int4, "),
        ({"quantize": {"weights": "q4_k"}}, "q4_k_m"),
        ({"quantize": {"weights": "int4-symmetric", "scales": "uint8"}}, "negative scales"),
        (
            {"quantize": {"weights": "int4"}, "training": {"lora_rank": 8}},
            "low-rank matrices take quantized weights off their grid",
        ),
    ],
)
def test_recipes_that_cannot_be(sections, said):
    with pytest.raises(ValueError, match=said):
        DistillRecipe.model_validate(sections)


# --- a calibrated start ---------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["int4-32", "int4-offset-32"])
def test_a_calibrated_start_is_what_calibration_gives(checkpoint, weights):
    """The same codes and grids that the exporter's GPTQ comes to, on the same sequences."""
    samples = [Sample(tuple((i * 7 + row) % 256 for i in range(48))) for row in range(12)]
    recipe = QuantizeRecipe(weights=weights, start="calibrated")
    student, plain = load_trainable(checkpoint), load_trainable(checkpoint)
    quantized_student(plain.model, checkpoint, recipe.model_copy(update={"start": "nearest"}))
    whole = logits_of(load_trainable(checkpoint).model)
    quantized = quantized_student(student.model, checkpoint, recipe, samples)
    begun = logits_of(student.model)
    assert (begun - whole).square().mean() < (logits_of(plain.model) - whole).square().mean()
    decoder = read_decoder(open_checkpoint(checkpoint))
    linear = recipe.export_recipe().onnx_scheme(decoder.spec.parameters).linear
    formats = one_format(decoder.spec, linear)
    windows = Windows(np.array([sample.ids for sample in samples]))
    moved = apply_awq(decoder, windows, formats)
    packed = SequentialQuantizer(moved, windows, formats, RoundingOptions()).layer(0)
    blocks = quantized.finish()
    for matrix in ("gate", "down"):
        expected = packed[f"layers.0.{matrix}"]
        found = blocks[f"model.layers.0.mlp.{matrix}_proj.weight"].stored
        np.testing.assert_array_equal(found.data, expected.data)
        np.testing.assert_allclose(found.scales, expected.scales, rtol=1e-5)
    # To the last bits of the scales, which are coded once more.
    torch.testing.assert_close(logits_of(student.model), begun)
