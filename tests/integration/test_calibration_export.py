"""Exports with calibration: texts given, built in and written by the model; budgets; refusals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from edgesdk_export.calibration.calibrate import CalibrationSettings
from edgesdk_export.calibration.calibration_text import (
    builtin_calibration_text,
    calibration_windows,
    generate_calibration_text,
)
from edgesdk_export.calibration.format_mix import formats_to_mix, mixed_formats
from edgesdk_export.calibration.sensitivity import MatrixCost
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.onnx import WeightScheme
from edgesdk_export.onnx.stored_weights import matrix_parts
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.quality.evaluation_text import EvaluationText, default_text
from edgesdk_export.recipes.recipe import Recipe
from edgesdk_export.recipes.sections import CalibrationRecipe, OnnxRecipe
from support.tiny_models import VOCAB_SIZE, make_tiny

from edgesdk.errors import ExportError, RequestError

pytestmark = pytest.mark.integration

# Bytes are tokens for the tiny models.
TEXT = EvaluationText("prose", default_text().text[20_000:23_000])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    make_tiny("llama", folder)
    return folder


def exported(checkpoint: Path, name: str, calibration: CalibrationSettings | None, **more):
    section, tokens, text = OnnxRecipe(bits=4), None, None
    if calibration is not None:
        section = OnnxRecipe(
            bits=calibration.bits or 4,
            method=calibration.method,
            awq=calibration.awq,
            sweeps=calibration.sweeps,
        )
        tokens, text = CalibrationRecipe(tokens=calibration.tokens), calibration.text
    job = ExportJob(
        checkpoint=checkpoint,
        destination=checkpoint.parent / name,
        name="tiny",
        recipe=Recipe(name="asked", onnx=section, calibration=tokens),
        calibration_text=text,
        **{"quality_tokens": 512, **more},
    )
    return export(job, SilentProgress()).manifest


def test_a_calibrated_export_says_so_and_is_better(checkpoint: Path) -> None:
    plain = exported(checkpoint, "plain", None)
    found = exported(checkpoint, "gptq", CalibrationSettings("gptq", TEXT, 2_560))
    assert found.quality.kl_mean < plain.quality.kl_mean
    assert "GPTQ" in found.quantization.method
    assert "2560 tokens" in found.quantization.method
    assert found.quantization.bits_per_weight == plain.quantization.bits_per_weight


def test_the_same_calibration_gives_the_same_bytes(checkpoint: Path) -> None:
    asked = CalibrationSettings("gptq", TEXT, 2_048, awq=True, sweeps=1)
    one, other = (exported(checkpoint, name, asked, quality_tokens=0) for name in ("a", "b"))
    assert one.files == other.files


def test_weighted_and_activation_aware_exports_measure_well(checkpoint: Path) -> None:
    plain = exported(checkpoint, "plain", None)
    found = exported(checkpoint, "awq", CalibrationSettings("weighted", TEXT, 2_048, awq=True))
    assert found.quality.kl_mean < 1.1 * plain.quality.kl_mean
    assert found.quantization.method.startswith("activation-aware channel scales, ")
    assert found.quantization.method.endswith("calibrated on prose")


def test_a_budget_is_kept_and_used(checkpoint: Path) -> None:
    def sized(bits):
        asked = CalibrationSettings("gptq", TEXT, 2_048, bits=bits)
        return exported(checkpoint, f"sized-{bits}", asked)

    small, large = sized(7.0), sized(7.9)
    for found, bits in ((small, 7.0), (large, 7.9)):
        assert bits - 0.3 < found.quantization.bits_per_weight <= bits
        assert found.quantization.weights == "int4+int8"
    assert large.quality.kl_mean < small.quality.kl_mean


def test_a_budget_that_nothing_meets_is_refused(checkpoint: Path) -> None:
    with pytest.raises(RequestError, match=r"4.1 bits a weight .* the smallest formats take \d"):
        exported(checkpoint, "no", CalibrationSettings("gptq", TEXT, 2_048, bits=4.1))
    assert not (checkpoint.parent / "no").exists()


def test_a_text_that_is_too_short_is_refused_with_the_numbers(checkpoint: Path) -> None:
    short = EvaluationText("note.txt", TEXT.text[:1_000])
    with pytest.raises(ExportError, match=r"'note.txt' gives 768 tokens .* needs 2048"):
        exported(checkpoint, "no", CalibrationSettings("gptq", short))
    with pytest.raises(ExportError, match=r"'note.txt' has 9 tokens; one window takes 256"):
        exported(
            checkpoint, "no", CalibrationSettings("gptq", EvaluationText("note.txt", "some text"))
        )


@pytest.mark.parametrize("more", [{"scheme": "fp16"}, {"via": "optimum"}], ids=str)
def test_what_cannot_be_calibrated_is_refused(checkpoint: Path, more: dict) -> None:
    with pytest.raises(RequestError, match="calibrat"):
        exported(checkpoint, "no", CalibrationSettings("gptq", TEXT), **more)


def test_a_model_can_write_its_own_text(checkpoint: Path, tmp_path: Path) -> None:
    decoder = read_decoder(open_checkpoint(checkpoint))
    work = tmp_path / "work"
    work.mkdir()
    once, again, other = (
        generate_calibration_text(decoder, work, bos=257, tokens=3_000, seed=seed)
        for seed in (1, 1, 2)
    )
    assert once.ids.shape == (12, 256)
    assert (once.ids[:, 0] == 257).all()
    assert np.array_equal(once.ids, again.ids)
    assert not np.array_equal(once.ids, other.ids)
    assert 0 <= once.ids.min() <= once.ids.max() < VOCAB_SIZE
    assert list(work.iterdir()) == []
    # Texts of one batch differ, and tokens are likelier than chance.
    assert len(np.unique(once.ids, axis=0)) == 12
    found = exported(checkpoint, "own", CalibrationSettings("gptq", None, 2_048), quality_tokens=0)
    assert "2048 tokens" in found.quantization.method


def test_own_writing_is_likely_to_the_model(checkpoint: Path, tmp_path: Path) -> None:
    decoder = read_decoder(open_checkpoint(checkpoint))
    windows = generate_calibration_text(decoder, tmp_path, bos=257, tokens=2_048)
    likelihoods = _mean_log_likelihood(checkpoint, windows.ids)
    noise = np.random.default_rng(0).integers(0, VOCAB_SIZE, windows.ids.shape)
    assert likelihoods > _mean_log_likelihood(checkpoint, noise) + 0.5


def _mean_log_likelihood(checkpoint: Path, ids: np.ndarray) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        tokens = torch.from_numpy(ids)
        return -float(model(tokens, labels=tokens).loss)


def test_the_built_in_text_is_long_and_not_the_one_of_quality() -> None:
    text, other = builtin_calibration_text(), default_text()
    assert len(text.text) > 100_000
    lines = {line.strip() for line in text.text.splitlines() if len(line) > 60}
    shared = lines & {line.strip() for line in other.text.splitlines()}
    assert len(shared) < 0.01 * len(lines)


def test_windows_of_a_text_are_cut_as_asked(checkpoint: Path) -> None:
    tokenizer = (checkpoint / "tokenizer.json").read_bytes()
    windows = calibration_windows(TEXT, tokenizer, bos=257, context=256, tokens=2_100)
    assert windows.ids.shape == (9, 256)
    assert (windows.ids[:, 0] == 257).all()


@pytest.mark.parametrize("bits", [6.5, 7.0, 9.0])
def test_formats_go_where_divergence_is(checkpoint: Path, bits: float) -> None:
    decoder = read_decoder(open_checkpoint(checkpoint))
    scheme = WeightScheme.named("int4")
    names = [name for name in matrix_parts(decoder.spec) if name.startswith("layers.")]
    error = [2.0 ** -(2 * fmt.bits) * math.sqrt(fmt.block) for fmt in formats_to_mix(scheme)]
    costs = {
        name: MatrixCost(1, tuple(e * (50 if name.endswith("down") else 1) for e in error))
        for name in names
    }
    chosen = mixed_formats(decoder.spec, scheme, costs, bits)
    assert chosen.keys() == costs.keys()
    for index in range(decoder.spec.layers):
        assert chosen[f"layers.{index}.down"].bits >= chosen[f"layers.{index}.up"].bits
