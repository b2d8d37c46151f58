"""MLX computes what the checkpoint and the ONNX graph say, in every family and number format.

MLX runs on the CPU here; on a Mac the same code runs on Metal.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.recipes.recipe import Recipe
from edgesdk_export.recipes.sections import CalibrationRecipe, OnnxRecipe
from support.onnx_decoding import OnnxDecoding
from support.tiny_models import VARIANTS, make_tiny

import edgesdk
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import Engine, Logits
from edgesdk.engines.registry import open_engine
from edgesdk.errors import InvalidOption, RequestError
from edgesdk.system.cancellation import CancellationToken, Cancelled

pytest.importorskip("mlx.core")
pytestmark = pytest.mark.integration

# Past every window of the tiny models (24 at most), and past phi3's short factors (64 here).
TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(96)]
OTHER = [(5 * i * i + i + 11) % 320 for i in range(96)]


def exported(
    folder: Path, stored: dict[str, Any], variant: str = "llama", **overrides: Any
) -> Bundle:
    """A tiny model whose weights are stored as an ONNX section of a recipe says."""
    make_tiny(variant, folder / "checkpoint", **overrides)
    onnx_section = OnnxRecipe.model_validate(stored)
    recipe = Recipe(name="test", onnx=onnx_section, calibration=CalibrationRecipe(tokens=512))
    job = ExportJob(
        folder / "checkpoint", folder / "bundle", "tiny", recipe=recipe, quality_tokens=0
    )
    return export(job, SilentProgress())


def mlx_engine(bundle: Bundle, **options: object) -> Engine:
    return open_engine(bundle, "apple", options=options)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    longer = {"original_max_position_embeddings": 64} if variant == "phi3-longrope" else {}
    model = make_tiny(variant, tmp_path / "checkpoint", **longer)
    job = ExportJob(
        tmp_path / "checkpoint", tmp_path / "bundle", "tiny", scheme="fp32", quality_tokens=0
    )
    engine = mlx_engine(export(job, SilentProgress()))
    state = engine.new_state()
    found = state.extend(TOKENS, logits="all")
    with torch.no_grad():
        wanted = model(torch.tensor([TOKENS]), output_hidden_states=True)
    np.testing.assert_allclose(found, wanted.logits[0].numpy(), atol=1e-3)
    states = state.hidden_states
    assert states is not None
    np.testing.assert_allclose(states, wanted.hidden_states[-1][0].numpy(), atol=1e-3)

    # Chunks and single tokens, onto a cache that was rewound.
    pieces = [TOKENS[:10], TOKENS[10:11], TOKENS[11:24], TOKENS[24:25], OTHER[:48], OTHER[48:49]]
    past, rows = None, []
    with torch.no_grad():
        for piece in pieces:
            result = model(torch.tensor([piece]), past_key_values=past, use_cache=True)
            past = result.past_key_values
            rows.append(result.logits[0].numpy())
    state.rewind(0)
    chunks = [state.extend(piece, logits="all").copy() for piece in pieces[:4]]
    state.extend(TOKENS[:7])
    state.rewind(25)
    chunks += [state.extend(piece, logits="all").copy() for piece in pieces[4:]]
    np.testing.assert_allclose(np.concatenate(chunks), np.concatenate(rows), atol=1e-3)
    engine.close()


def unrounded_graph(bundle: Bundle) -> OnnxDecoding:
    """The bundle's own graph on onnxruntime, activations not rounded to 8 bits."""
    path = bundle.role_file("decoder")
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    exact = path.with_name("exact.onnx")
    onnx.save(model, exact)
    spec = bundle.decoder_spec()
    assert spec is not None
    return OnnxDecoding(exact, spec, capacity=128)


CALIBRATED = {"method": "weighted", "scales": "uint8"}


@pytest.mark.parametrize(
    ("variant", "stored", "overrides"),
    [
        ("qwen2", {"bits": 4}, {}),
        ("llama-biased", {"bits": 4, "symmetric": True}, {}),
        ("llama-biased", {"bits": 8}, {}),
        ("llama", {"bits": 16}, {}),
        ("llama", {"bits": 4, "embedding": "fp16"}, {}),
        ("qwen2", {"bits": 4, **CALIBRATED}, {}),
        ("qwen2", {"bits": 4, "offsets": True, **CALIBRATED}, {"intermediate_size": 128}),
        # Blocks that MLX has no kernel for, and rows that blocks do not divide, become floats.
        ("qwen2", {"bits": 4, "block": 16}, {}),
        ("llama", {"bits": 4}, {"intermediate_size": 100}),
        ("llama", {"bits": 8, "block": 128}, {"hidden_size": 256, "intermediate_size": 512}),
    ],
)
def test_number_formats_are_the_graphs(
    variant: str, stored: dict[str, Any], overrides: dict[str, Any], tmp_path: Path
) -> None:
    bundle = exported(tmp_path, stored, variant, **overrides)
    wanted = unrounded_graph(bundle).extend(TOKENS)
    engine = mlx_engine(bundle)
    found = engine.new_state().extend(TOKENS, logits="all")
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    engine.close()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = mlx_engine(exported(tmp_path_factory.mktemp("tiny"), {"bits": 4}, "qwen2"))
    yield made
    made.close()


def test_rows_of_each_are_those_of_single_steps(engine: Engine) -> None:
    batch, single = engine.new_state(), engine.new_state()
    for state in (batch, single):
        state.extend(TOKENS[:20])
    rows = batch.extend(TOKENS[20:28], logits="each").copy()
    states = batch.hidden_states
    steps, hidden = [], []
    for token in TOKENS[20:28]:
        steps.append(single.extend([token])[0].copy())
        assert single.hidden_states is not None
        hidden.append(single.hidden_states[0].copy())
    np.testing.assert_array_equal(rows, np.stack(steps))
    np.testing.assert_array_equal(states, np.stack(hidden))


def test_a_fork_a_rewind_and_a_file_give_the_very_same_numbers(
    engine: Engine, tmp_path: Path
) -> None:
    state = engine.new_state()
    state.extend(TOKENS[:30])
    fork = state.fork()
    state.save(tmp_path / "saved", {"turn": 3})
    wanted = state.extend(TOKENS[30:31]).copy()
    np.testing.assert_array_equal(fork.extend(TOKENS[30:31]), wanted)
    fork.rewind(30)
    fork.extend(OTHER[:9])
    fork.rewind(30)
    np.testing.assert_array_equal(fork.extend(TOKENS[30:31]), wanted)
    restored = engine.new_state()
    assert restored.restore(tmp_path / "saved") == {"turn": 3}
    np.testing.assert_array_equal(restored.extend(TOKENS[30:31]), wanted)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_near_and_saves_too(precision: str, tmp_path: Path) -> None:
    bundle = exported(tmp_path, {"bits": 8}, "qwen2")
    full, half = mlx_engine(bundle), mlx_engine(bundle, precision=precision)
    wanted = full.new_state().extend(TOKENS, logits="all")
    state = half.new_state()
    found = state.extend(TOKENS, logits="all")
    assert found.dtype == np.float32
    error = np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))
    assert 0 < error < 0.1
    state.save(tmp_path / "saved")
    again = half.new_state()
    again.restore(tmp_path / "saved")
    np.testing.assert_array_equal(again.extend(OTHER[:1]), state.extend(OTHER[:1]))
    with pytest.raises(RequestError, match="another KV layout"):
        full.new_state().restore(tmp_path / "saved")


def test_a_precision_that_there_is_not(tmp_path: Path) -> None:
    bundle = exported(tmp_path, {"bits": 8})
    with pytest.raises(InvalidOption, match="must be one of float32, float16, bfloat16; not 'fp8'"):
        edgesdk.load(bundle.path, device="apple", device_options={"precision": "fp8"})


def test_cancelling_leaves_the_state_as_it_was(engine: Engine) -> None:
    state = engine.new_state()
    state.extend(TOKENS[:5])
    token = CancellationToken()
    token.cancel()
    with pytest.raises(Cancelled):
        state.extend(TOKENS[5:9], cancellation=token)
    assert state.tokens == tuple(TOKENS[:5])
    fresh = engine.new_state()
    fresh.extend(TOKENS[:5])
    np.testing.assert_allclose(
        state.extend(TOKENS[5:9]), fresh.extend(TOKENS[5:9]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.nightly
def test_a_chat_with_structure_and_tools_on_mlx(smollm2_int4: Bundle) -> None:
    with edgesdk.load(smollm2_int4.path, device="apple") as model, model.chat() as chat:
        assert model.runtime.engine.info.device == "apple"
        assert model.runtime.engine.info.name.startswith("MLX ")
        reply = chat.respond("What is the capital of France?", max_tokens=10, temperature=0)
        assert "Paris" in reply.text
        again = chat.respond("Say it in one word.", max_tokens=4, temperature=0)
        assert again.receipt.cached_tokens > 0
        yes = model.respond("Is the sky blue?", choices=["yes", "no"], temperature=0, max_tokens=8)
        assert yes.text in ("yes", "no")

        def weather(city: Literal["Oslo", "Lima"]) -> str:
            """Tell the weather of a city."""
            return f"Rain in {city}."

        called = model.respond(
            "Weather in Oslo?", tools=[weather], tool_choice="required", max_tokens=64
        )
        assert called.tool_calls[0].name == "weather"


def test_several_threads_share_one_engine(engine: Engine) -> None:
    wanted = engine.new_state().extend(TOKENS).copy()
    found: dict[int, Logits] = {}

    def run(number: int) -> None:
        state = engine.new_state()
        found[number] = state.extend(TOKENS).copy()
        state.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        np.testing.assert_array_equal(found[number], wanted)


def test_smollm2_answers_as_onnxruntime_does_without_rounding(smollm2_int4: Bundle) -> None:
    ids = [504, 2365, 282, 4649, 314, 260, 3575, 282, 260, 905, 30, 339, 5248, 253, 2644]
    wanted = unrounded_graph(smollm2_int4).extend(ids)
    engine = mlx_engine(smollm2_int4)
    found = engine.new_state().extend(ids, logits="all")
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert (found.argmax(axis=1) == wanted.argmax(axis=1)).all()
    engine.close()
