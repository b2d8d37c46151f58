"""Bundles for NPUs, from `export` to a chat, on the CPU in the NPU's place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.quality.evaluation_text import EvaluationText, default_text
from edgesdk_export.quality.report import measure_bundles
from edgesdk_export.recipes.recipe import Recipe
from edgesdk_export.recipes.sections import CalibrationRecipe, OnnxRecipe, StaticRecipe
from edgesdk_export.selftest.weight_noise import checkpoint_logits
from edgesdk_export.weights import Decoder, LazyTensor
from edgesdk_quantize.formats import Int4Symmetric
from edgesdk_quantize.formats.qdq import A16W4, A16W8, W4, W8, Qdq
from support.exported import made_once
from support.reference_decoder import logits_of
from support.tiny_models import make_tiny

import edgesdk
from edgesdk.bundle.manifest import MANIFEST_NAME
from edgesdk.bundle.opening import Bundle, open_bundle
from edgesdk.engines.base import Engine
from edgesdk.engines.registry import open_engine
from edgesdk.errors import (
    ContextOverflow,
    DamagedBundle,
    InvalidOption,
    RequestError,
    UnsupportedBundle,
)
from edgesdk.server.model_pool import _source_info
from edgesdk.system.cancellation import CancellationToken, Cancelled

pytestmark = pytest.mark.integration

TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(48)]


def exported(folder: Path, variant: str = "llama", **fields: Any) -> Bundle:
    if not (folder / "checkpoint").exists():
        make_tiny(variant, folder / "checkpoint")
    settings = {"target": "npu", "scheme": "fp32", "quality_tokens": 0, "prefill": 32, **fields}
    job = ExportJob(folder / "checkpoint", folder / "bundle", "tiny", replace=True, **settings)
    return export(job, SilentProgress())


class RoundedTensor:
    """A matrix as a format stores it, read back."""

    def __init__(self, tensor: LazyTensor, fmt: Int4Symmetric | Qdq) -> None:
        values = tensor.rows(0, tensor.shape[0])
        if isinstance(fmt, Qdq):
            self._values = fmt.dequantize(fmt.quantize(values))
        else:
            self._values = fmt.dequantize(fmt.quantize(values), columns=values.shape[1])
        self.shape, self.dtype = tensor.shape, "F32"

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self._values[start:stop]


def rounded(decoder: Decoder, fmt: Int4Symmetric | Qdq, head: Qdq | None = None) -> Decoder:
    """The decoder with the matrices of its layers rounded, and its head where that is asked for."""
    weights: dict[str, LazyTensor] = {}
    for name, tensor in decoder.weights.items():
        if name.startswith("layers.") and len(tensor.shape) > 1:
            weights[name] = RoundedTensor(tensor, fmt)
        elif name == "head.weight" and head is not None:
            weights[name] = RoundedTensor(tensor, head)
        else:
            weights[name] = tensor
    return Decoder(decoder.spec, weights)


def all_logits(engine: Engine, tokens: list[int]) -> np.ndarray:
    """Most through the prefill graph, the last ones through the decode graph."""
    state = engine.new_state()
    rows = state.extend(tokens[:-4], logits="all")
    return np.concatenate([rows, *(state.extend([token]).copy() for token in tokens[-4:])])


@pytest.mark.parametrize("variant", ["llama-biased", "qwen3"])
@pytest.mark.parametrize(
    ("target", "scheme", "activations", "fmt", "head"),
    [
        ("qualcomm", "int4", "auto", Int4Symmetric(32), None),
        ("qualcomm", "int8", "auto", A16W8, A16W8),
        ("npu", "int4", "uint16", A16W4, A16W8),
        ("intel", "int4", "auto", W4, W8),
        ("intel", "int8", "auto", W8, W8),
    ],
)
def test_weights_are_what_their_format_makes_of_them(
    variant: str,
    target: str,
    scheme: str,
    activations: Any,
    fmt: Any,
    head: Any,
    tmp_path: Path,
) -> None:
    recipe = Recipe(
        name="test",
        onnx=OnnxRecipe(),
        static=StaticRecipe(prefill=32, activations=activations),
        calibration=CalibrationRecipe(tokens=512),
    )
    bundle = exported(tmp_path, variant, target=target, scheme=scheme, recipe=recipe)
    assert bundle.manifest.quantization.weights == fmt.name
    decoder = read_decoder(open_checkpoint(tmp_path / "checkpoint"))
    wanted = logits_of(rounded(decoder, fmt, head), TOKENS)
    found = all_logits(open_engine(bundle, "cpu", threads=1), TOKENS)
    # float16, and grids of 16 bits: the third digit.
    np.testing.assert_allclose(found, wanted, atol=0.1)
    lead = np.sort(wanted, axis=1)[:, -1] - np.sort(wanted, axis=1)[:, -2]
    clear = lead > 0.1
    assert (found.argmax(axis=1) == wanted.argmax(axis=1))[clear].all()


@pytest.mark.parametrize("method", ["weighted", "gptq"])
def test_calibrated_codes_of_blocks_lose_less(method: str, tmp_path: Path) -> None:
    divergence = {}
    for chosen in ("nearest", method):
        recipe = Recipe(
            name="test",
            onnx=OnnxRecipe(bits=4, method=chosen, awq=chosen != "nearest"),
            calibration=CalibrationRecipe(tokens=2048),
        )
        bundle = exported(
            *(tmp_path, "llama"),
            scheme=None,
            recipe=recipe,
            calibration_text=EvaluationText("text", default_text().text[20_000:23_000]),
            quality_tokens=512,
        )
        # Both are of the format that Qualcomm's compiler takes.
        assert bundle.manifest.quantization.weights == "int4-symmetric"
        assert bundle.manifest.quality is not None
        divergence[chosen] = bundle.manifest.quality.kl_mean
    # By 8 % and more on this model.
    assert divergence[method] < 0.95 * divergence["nearest"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(tmp_path_factory.mktemp("tiny"), quality_tokens=200)


@pytest.fixture
def damaged(tiny: Bundle, tmp_path: Path) -> Path:
    """A copy to be spoiled."""
    return Path(shutil.copytree(tiny.path, tmp_path / "damaged"))


def rewrite(folder: Path, change: dict[str, Any]) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_the_manifest_says_what_the_graphs_are(tiny: Bundle) -> None:
    manifest = tiny.manifest
    assert manifest.roles == {"prefill": "prefill.onnx", "decode": "decode.onnx"}
    assert manifest.target == "npu"
    assert manifest.static is not None
    assert (manifest.static.prefill_tokens, manifest.static.window) == (32, 256)
    assert manifest.quality is not None
    assert manifest.quality.top1_agreement == 1
    # Both graphs read the one file.
    assert (tiny.path / "decode.onnx").stat().st_size < 50_000
    assert (tiny.path / "model.onnx.data").stat().st_size > 300_000


def test_a_cached_prefix_gives_the_very_numbers_of_a_fresh_prompt(tiny: Bundle) -> None:
    engine = open_engine(tiny, "cpu", threads=1)
    step = engine.info.prefill_step
    fresh = engine.new_state().extend(TOKENS).copy()
    cached = engine.new_state()
    cached.extend(TOKENS[:40])
    cached.rewind(40 // step * step)
    np.testing.assert_array_equal(cached.extend(TOKENS[step * (40 // step) :]), fresh)


@pytest.mark.parametrize("how", ["lookup", "draft"])
def test_speculation_says_what_the_model_would(how: str, tiny: Bundle) -> None:
    draft = tiny.path if how == "draft" else None
    with edgesdk.load(tiny.path, device="cpu", draft=draft) as model:
        plain = model.complete("abcabcabc", max_tokens=24, temperature=0, speculate="off")
        guessed = model.complete(
            "abcabcabc", max_tokens=24, temperature=0, speculate=None if draft else "lookup"
        )
    assert guessed.tokens == plain.tokens
    if draft:
        # The draft is the model itself.
        assert guessed.receipt.accepted_tokens > 0


def test_the_quality_of_a_finished_bundle_is_in_its_manifest(tiny: Bundle) -> None:
    text = EvaluationText("text", "the quick brown fox " * 400)
    with pytest.raises(RequestError, match="graphs of fixed shapes cannot be run layer by layer"):
        measure_bundles(
            [tiny], tiny.path.parent / "checkpoint", text, tokens=64, progress=lambda *_: None
        )


def test_a_server_lists_it(tiny: Bundle) -> None:
    info = _source_info(tiny)
    assert (info.name, info.size) == ("tiny", tiny.size)


def test_cancelling_between_chunks_leaves_the_state_as_it_was(tiny: Bundle) -> None:
    engine = open_engine(tiny, "cpu", threads=1)
    state, token = engine.new_state(), CancellationToken()
    wanted = state.extend(TOKENS[:20]).copy()
    runs = 0

    class Counting(CancellationToken):
        def raise_if_cancelled(self) -> None:
            nonlocal runs
            runs += 1
            if runs == 3:
                raise Cancelled

    with pytest.raises(Cancelled):
        state.extend(TOKENS * 3, cancellation=Counting())
    assert runs == 3
    assert state.tokens == tuple(TOKENS[:20])
    state.rewind(0)
    np.testing.assert_array_equal(state.extend(TOKENS[:20], cancellation=token), wanted)


def test_a_prompt_longer_than_the_window_is_refused(tmp_path: Path) -> None:
    bundle = exported(tmp_path, window=32)
    assert bundle.manifest.shape.context_length == 32
    state = open_engine(bundle, "cpu", threads=1).new_state()
    with pytest.raises(ContextOverflow, match="48 tokens do not fit the context of 32"):
        state.extend(TOKENS)
    state.extend(TOKENS[:32])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 257}, "A window of 257 tokens is larger than the model's context of 256"),
        ({"prefill": 24}, "A prefill of 24 tokens at a time is not a power of two from 2 to 256"),
        ({"prefill": 64, "window": 32}, "not a power of two from 2 to 32"),
        ({"target": "cpu", "window": 64}, "takes texts of any length"),
        ({"via": "optimum", "scheme": "fp32"}, "optimum makes no graph for the device 'npu'"),
    ],
)
def test_sizes_that_cannot_be(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        exported(tmp_path, **fields)
    assert not (tmp_path / "bundle").exists()


def test_a_missing_graph_is_named(damaged: Path) -> None:
    manifest = json.loads((damaged / MANIFEST_NAME).read_text())
    rewrite(damaged, {"roles": {"prefill": manifest["roles"]["prefill"]}})
    with pytest.raises(UnsupportedBundle, match="no file in the role 'decode', only prefill"):
        edgesdk.load(damaged, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 128}, r"input 'mask' has shape \[1, 1, 32, 288\], not \[1, 1, 32, 160\]"),
        ({"dtype": "float16"}, "input 'mask' is float32, not float16"),
        ({"prefill_tokens": 24}, "24 is no power of two"),
        ({"mask_value": float("-inf")}, "mask_value"),
    ],
)
def test_sizes_that_are_not_the_graphs(
    change: dict[str, Any], message: str, tiny: Bundle, damaged: Path
) -> None:
    assert tiny.manifest.static is not None
    rewrite(damaged, {"static": {**tiny.manifest.static.model_dump(), **change}})
    with pytest.raises(DamagedBundle, match=message):
        edgesdk.load(damaged, device="cpu")


def test_a_bundle_for_another_target_says_so(tiny: Bundle) -> None:
    with pytest.raises(InvalidOption, match="exported for 'npu', on the device 'apple'"):
        edgesdk.load(tiny.path, device="apple")


def real_bundle(gguf: Path, scheme: str, factory: pytest.TempPathFactory) -> Bundle:
    """SmolLM2 in graphs of fixed shapes."""

    def make(path: Path) -> None:
        settings = {"target": "npu", "scheme": scheme, "window": 512, "prefill": 64}
        export(
            ExportJob(gguf, path, "smollm2-static", quality_tokens=0, **settings),
            SilentProgress(),
        )

    return open_bundle(made_once(factory, f"smollm2-static-{scheme}", make))


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return real_bundle(smollm2_gguf, "int4", tmp_path_factory)


IDS = [504, 2365, 282, 4649, 314, 260, 3575, 282, 260, 905, 30, 339, 5248, 253, 2644]


def test_smollm2_computes_what_its_rounded_weights_say(smollm2: Bundle, smollm2_gguf: Path) -> None:
    decoder = rounded(read_decoder(open_checkpoint(smollm2_gguf)), Int4Symmetric(32))
    wanted = checkpoint_logits(decoder, np.array(IDS), None)
    found = all_logits(open_engine(smollm2, "cpu"), IDS)
    assert (found.argmax(axis=1) == wanted.argmax(axis=1)).all()
    np.testing.assert_allclose(found, wanted, rtol=0.01, atol=0.3)


@pytest.mark.nightly
def test_smollm2_in_float16_is_the_checkpoint(
    smollm2_gguf: Path, smollm2_fp32: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    half = real_bundle(smollm2_gguf, "fp16", tmp_path_factory)
    wanted = open_engine(smollm2_fp32, "cpu").new_state().extend(IDS, logits="all")
    found = all_logits(open_engine(half, "cpu"), IDS)
    assert (found.argmax(axis=1) == wanted.argmax(axis=1)).all()
    np.testing.assert_allclose(found, wanted, rtol=0.01, atol=0.1)


def test_a_chat_with_structure_and_tools(smollm2: Bundle) -> None:
    with edgesdk.load(smollm2.path, device="cpu") as model, model.chat() as chat:
        assert model.runtime.engine.info.context_length == 512
        reply = chat.respond("What is the capital of France?", max_tokens=10, temperature=0)
        assert "Paris" in reply.text
        again = chat.respond("Say it in one word.", max_tokens=4, temperature=0)
        assert again.receipt.prompt_tokens > 0
        yes = model.respond("Is the sky blue?", choices=["yes", "no"], temperature=0, max_tokens=8)
        assert yes.text in ("yes", "no")

        def weather(city: Literal["Oslo", "Lima"]) -> str:
            """Tell the weather of a city."""
            return f"Rain in {city}."

        called = model.respond(
            "Weather in Oslo?", tools=[weather], tool_choice="required", max_tokens=64
        )
        assert called.tool_calls[0].name == "weather"
