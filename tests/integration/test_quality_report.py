"""Bundles of both formats against their checkpoint, after the export."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.quality.evaluation_text import EvaluationText, cut_windows
from edgesdk_export.quality.plot import draw_quality, require_plotting
from edgesdk_export.quality.report import BundleQuality, measure_bundles
from support.tiny_models import make_tiny

from edgesdk.bundle.opening import Bundle
from edgesdk.errors import DamagedBundle, MissingExtra, RequestError

pytest.importorskip("llama_cpp")

pytestmark = pytest.mark.integration

TEXT = EvaluationText("fox.txt", "the quick brown fox jumps over the lazy dog " * 400)
TOKENS = 600
SCHEMES = [("onnx", "fp32"), ("onnx", "int8"), ("onnx", "int4"), ("gguf", "q8_0"), ("gguf", "q2_k")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """transformers' model, and the folder that it is saved in."""
    folder = tmp_path_factory.mktemp("tiny") / "hf"
    return make_tiny("qwen2", folder, max_position_embeddings=128), folder


@pytest.fixture(scope="module")
def bundles(model, tmp_path_factory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return [
        export(
            ExportJob(
                *(model[1], folder / scheme, scheme.replace("_", "-"), fmt),
                scheme=scheme,
                text=TEXT,
                quality_tokens=TOKENS,
            ),
            SilentProgress(),
        )
        for fmt, scheme in SCHEMES
    ]


@pytest.fixture(scope="module")
def measured(model, bundles) -> list[BundleQuality]:
    steps: list[tuple[int, int]] = []
    found = measure_bundles(
        bundles, model[1], TEXT, tokens=TOKENS, progress=lambda *step: steps.append(step)
    )
    assert [done for done, _ in steps] == list(range(1, steps[0][1] + 1))
    return found


def test_together_they_measure_what_each_export_did(bundles, measured):
    assert [entry.quality for entry in measured] == [bundle.manifest.quality for bundle in bundles]
    assert [entry.quality.weights_only for entry in measured] == [False] * 3 + [True] * 2
    assert "of the weights" in measured[-1].quality.line()


def test_perplexity_and_its_error_are_transformers(model, measured):
    tokenizer = (model[1] / "tokenizer.json").read_bytes()
    ids = torch.tensor(cut_windows(TEXT, tokenizer, tokens=TOKENS, bos=None, context=128).ids)
    with torch.no_grad():
        logits = model[0](ids).logits[:, :-1].double()
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    exact = measured[0].quality
    assert exact.tokens == len(nll)
    assert exact.kl_mean < 1e-6
    assert exact.perplexity == pytest.approx(float(nll.mean().exp()), rel=1e-3)
    error = float(nll.mean().exp() * nll.std() / np.sqrt(len(nll)))
    assert exact.perplexity_error == pytest.approx(error, rel=2e-3)
    assert exact.checkpoint_perplexity_error == pytest.approx(error, rel=2e-3)
    assert f"± {exact.perplexity_error:.2f} against" in exact.line()


def test_layers_are_further_off_the_fewer_the_bits(measured):
    exact, int8, int4, q8_0, q2_k = (np.array(entry.kl_by_layer) for entry in measured)
    assert len(exact) == 3
    assert (exact < 1e-6).all()
    assert (exact < int8).all()
    assert (int8 < int4).all()
    assert (q8_0 < q2_k).all()


def test_another_model_is_refused(bundles, tmp_path):
    make_tiny("qwen2", tmp_path / "hf", num_hidden_layers=2)
    with pytest.raises(RequestError, match="its layers is 3, the checkpoint's 2"):
        measure_bundles(bundles, tmp_path / "hf", TEXT, tokens=10, progress=lambda *step: None)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [(None, RequestError, "drawn by edgesdk"), ({"family": 3}, DamagedBundle, "spec.family")],
)
def test_a_graph_that_cannot_be_followed_is_refused(model, bundles, spec, error, message):
    manifest = bundles[0].manifest.model_copy(update={"spec": spec})
    strange = dataclasses.replace(bundles[0], manifest=manifest)
    with pytest.raises(error, match=message):
        measure_bundles([strange], model[1], TEXT, tokens=10, progress=lambda *step: None)


def test_a_plot_is_a_png_and_the_same_again(measured, tmp_path):
    pytest.importorskip("matplotlib")
    places = [tmp_path / "one.png", tmp_path / "two.png"]
    for place in places:
        draw_quality(measured, place)
    one, two = (place.read_bytes() for place in places)
    assert one.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(one) > 10_000
    assert one == two
    assert sorted(tmp_path.iterdir()) == places


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'edgesdk\[plot\]'"):
        require_plotting()


def test_a_plot_that_cannot_be_written_leaves_nothing(measured, tmp_path: Path):
    pytest.importorskip("matplotlib")
    (tmp_path / "p.png").mkdir()
    with pytest.raises(OSError):
        draw_quality(measured, tmp_path / "p.png")
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]
