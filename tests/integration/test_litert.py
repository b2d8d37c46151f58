"""LiteRT's interpreter computes what the checkpoint and the stored weights say.

It runs on the CPU here, with XNNPACK's kernels; on Android the same file goes to an NPU's delegate.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.litert.scheme import tflite_scheme
from edgesdk_export.litert.stored_decoder import stored_decoder
from edgesdk_export.litert.writer import write_tflite
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.selftest.litert_logits import litert_logits
from edgesdk_export.weights import Decoder
from edgesdk_quantize.divergence import DivergenceMeter
from support.exported import made_once
from support.reference_decoder import logits_of, rounded_to_8_bits
from support.tiny_models import VARIANTS, make_tiny

import edgesdk
from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.opening import Bundle, open_bundle
from edgesdk.cli.export import command as export_command
from edgesdk.engines.base import Engine, Logits
from edgesdk.engines.litert.decode_state import LitertDecodeState, LoadedTflite
from edgesdk.engines.registry import footprint, open_engine
from edgesdk.errors import (
    DamagedBundle,
    EngineError,
    InvalidOption,
    RequestError,
)
from edgesdk.system.cancellation import CancellationToken, Cancelled

pytestmark = pytest.mark.integration

# Past every window of the tiny models (24 at most).
TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(60)]
OTHER = [(5 * i * i + i + 11) % 320 for i in range(60)]


def job_for(folder: Path, scheme: str, **fields: Any) -> ExportJob:
    return ExportJob(
        folder / "checkpoint",
        folder / "bundle",
        "tiny",
        format="litert",
        target="litert",
        scheme=scheme,
        quality_tokens=0,
        **{"prefill": 16, "window": 64, **fields},
    )


def exported(folder: Path, scheme: str, variant: str = "llama", **overrides: Any) -> Bundle:
    """A tiny model in a window of 64 tokens, 16 of which are computed at a time."""
    longer = {"original_max_position_embeddings": 64} if variant == "phi3-longrope" else {}
    make_tiny(variant, folder / "checkpoint", **{**longer, **overrides})
    return export(job_for(folder, scheme), SilentProgress())


def litert_engine(bundle: Bundle, threads: int = 1) -> Engine:
    return open_engine(bundle, "litert", threads=threads)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    engine = litert_engine(exported(tmp_path, "fp32", variant))
    longer = {"original_max_position_embeddings": 64} if variant == "phi3-longrope" else {}
    model = make_tiny(variant, tmp_path / "again", **longer)
    state = engine.new_state()
    # Chunks and single tokens, onto caches that were rewound.
    state.extend(OTHER[:40])
    state.rewind(0)
    cuts = [0, 1, 14, 31, 32, 50, 59, 60]
    logits, hidden = [], []
    for start, stop in itertools.pairwise(cuts):
        logits.append(state.extend(TOKENS[start:stop], logits="all").copy())
        assert state.hidden_states is not None
        hidden.append(state.hidden_states.copy())
    with torch.no_grad():
        wanted = model(torch.tensor([TOKENS]), output_hidden_states=True)
    np.testing.assert_allclose(np.concatenate(logits), wanted.logits[0].numpy(), atol=1e-3)
    np.testing.assert_allclose(
        np.concatenate(hidden), wanted.hidden_states[-1][0].numpy(), atol=1e-3
    )
    engine.close()


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize(
    "variant", ["llama-biased", "llama-tied", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]
)
def test_logits_are_those_of_the_stored_weights(variant: str, scheme: str, tmp_path: Path) -> None:
    bundle = exported(tmp_path, scheme, variant)
    spec = bundle.decoder_spec()
    assert spec is not None
    engine = litert_engine(bundle)
    found = engine.new_state().extend(TOKENS, logits="all")
    stored = stored_decoder(bundle.role_file("decoder"), spec)
    wanted = logits_of(stored, TOKENS, rounded_to_8_bits)
    # The kernels round inputs to 8 bits. An input halfway between two steps may go to either, and
    # what follows sees it; a wrong scale or nibble moves every logit.
    error = np.abs(found - wanted).max(axis=1)
    assert np.median(error) < 1e-4
    assert error.max() < 0.15
    lead = np.sort(wanted, axis=1)[:, -1] - np.sort(wanted, axis=1)[:, -2]
    clear = lead > 2 * error
    assert (found.argmax(axis=1) == wanted.argmax(axis=1))[clear].all()
    assert clear.mean() > 0.9
    engine.close()


def test_rows_that_blocks_do_not_divide_have_8_bits(tmp_path: Path) -> None:
    bundle = exported(tmp_path, "int4", intermediate_size=100)
    spec = bundle.decoder_spec()
    assert spec is not None
    stored = stored_decoder(bundle.role_file("decoder"), spec)
    assert stored.weights["layers.0.down.weight"].dtype == "int8"
    assert stored.weights["layers.0.up.weight"].dtype == "int4"
    found = litert_engine(bundle).new_state().extend(TOKENS[:20], logits="all")
    wanted = logits_of(stored, TOKENS[:20], rounded_to_8_bits)
    assert np.median(np.abs(found - wanted).max(axis=1)) < 1e-4


@pytest.fixture(scope="module")
def tiny_int4(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(tmp_path_factory.mktemp("tiny"), "int4", "qwen2")


@pytest.fixture(scope="module")
def engine(tiny_int4: Bundle) -> Iterator[Engine]:
    made = litert_engine(tiny_int4)
    yield made
    made.close()


def test_the_same_export_gives_the_same_bytes(tiny_int4: Bundle, tmp_path: Path) -> None:
    again = exported(tmp_path, "int4", "qwen2")
    assert again.manifest.files == tiny_int4.manifest.files
    assert again.manifest.static == tiny_int4.manifest.static


def test_a_token_has_the_same_numbers_alone_and_among_others(engine: Engine) -> None:
    """What lets the engine promise that caches do not depend on how a prompt was cut."""
    singly, at_once = engine.new_state(), engine.new_state()
    rows = np.concatenate([singly.extend([token]).copy() for token in TOKENS])
    np.testing.assert_array_equal(at_once.extend(TOKENS, logits="all"), rows)
    assert engine.info.prefill_step == 0


def test_floats_promise_less_than_codes(tmp_path: Path) -> None:
    """On some Arm cores a float product of several rows differs from that of one."""
    engine = litert_engine(exported(tmp_path, "fp32"))
    assert engine.info.prefill_step == 16
    state, calls = engine.new_state(), []
    assert isinstance(state, LitertDecodeState)
    run = LoadedTflite.run

    def counted(self: LoadedTflite, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        calls.append((name, int(inputs.get("input_pos", [-1])[0])))
        return run(self, name, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoadedTflite, "run", counted)
        state.extend(TOKENS[:12], logits="each")
        assert calls == [("decode", at) for at in range(12)]
        calls.clear()
        # Whole calls of "prefill", whatever is there already.
        state.extend(TOKENS[12:40])
        assert calls == [("prefill", 0), ("prefill", 16), ("prefill", 32), ("head", -1)]
    fresh = engine.new_state()
    fresh.extend(TOKENS[:40])
    np.testing.assert_array_equal(state.extend(TOKENS[40:41]), fresh.extend(TOKENS[40:41]))


def test_rows_of_each_are_those_of_single_steps(engine: Engine) -> None:
    batch, single = engine.new_state(), engine.new_state()
    for state in (batch, single):
        state.extend(TOKENS[:20])
    rows = batch.extend(TOKENS[20:40], logits="each")
    states = batch.hidden_states
    assert states is not None
    for row, hidden, token in zip(rows, states, TOKENS[20:40], strict=True):
        np.testing.assert_array_equal(single.extend([token])[0], row)
        assert single.hidden_states is not None
        np.testing.assert_array_equal(single.hidden_states[0], hidden)


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


def test_cancelling_leaves_the_state_as_it_was(engine: Engine) -> None:
    state = engine.new_state()
    state.extend(TOKENS[:5])
    token = CancellationToken()
    token.cancel()
    with pytest.raises(Cancelled):
        state.extend(TOKENS[5:40], cancellation=token)
    assert state.tokens == tuple(TOKENS[:5])
    fresh = engine.new_state()
    fresh.extend(TOKENS[:5])
    np.testing.assert_array_equal(state.extend(TOKENS[5:9]), fresh.extend(TOKENS[5:9]))


def test_several_threads_share_one_interpreter(tiny_int4: Bundle) -> None:
    engine = litert_engine(tiny_int4, threads=2)
    wanted = engine.new_state().extend(TOKENS).copy()
    found: dict[int, Logits] = {}

    def run(number: int) -> None:
        found[number] = engine.new_state().extend(TOKENS).copy()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        np.testing.assert_array_equal(found[number], wanted)
    engine.close()


def test_what_the_manifest_says(tiny_int4: Bundle) -> None:
    manifest = tiny_int4.manifest
    assert (manifest.format, manifest.target) == ("litert", "litert")
    assert manifest.static is not None
    assert (manifest.static.prefill_tokens, manifest.static.window) == (16, 64)
    assert manifest.shape.context_length == 64
    stored = manifest.quantization
    assert (stored.weights, stored.head) == ("int4-litert", "int8-litert")
    size = tiny_int4.role_file("decoder").stat().st_size
    assert 0 < stored.bits_per_weight * manifest.shape.parameters / 8 < size
    need = footprint(tiny_int4, "litert").need(64)
    assert need.weights > size
    assert need.kv_cache >= 64 * manifest.shape.kv_bytes_per_token()


def test_a_window_that_no_prefill_divides(tmp_path: Path) -> None:
    make_tiny("llama", tmp_path / "checkpoint")
    bundle = export(job_for(tmp_path, "fp32", window=50), SilentProgress())
    assert bundle.manifest.static is not None
    assert bundle.manifest.static.window == 64
    engine = litert_engine(bundle)
    assert engine.info.context_length == 50
    assert engine.new_state().extend(TOKENS[:50]).shape == (1, 320)


def test_padding_reaches_beyond_the_factors_of_short_texts(tmp_path: Path) -> None:
    model = make_tiny("phi3-longrope", tmp_path / "checkpoint", original_max_position_embeddings=40)
    engine = litert_engine(export(job_for(tmp_path, "fp32", window=None), SilentProgress()))
    assert engine.info.context_length == 40
    found = engine.new_state().extend(TOKENS[:40], logits="all")
    with torch.no_grad():
        wanted = model(torch.tensor([TOKENS[:40]])).logits[0].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("variant", "window", "words"),
    [
        ("llama", 257, "257 tokens is larger than the model's context of 256"),
        ("phi3-longrope", 33, "other factors in texts of more than 32 tokens"),
    ],
)
def test_a_window_that_the_model_cannot_have(
    variant: str, window: int, words: str, tmp_path: Path
) -> None:
    make_tiny(variant, tmp_path / "checkpoint")
    with pytest.raises(RequestError, match=words):
        export(job_for(tmp_path, "fp32", window=window), SilentProgress())
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("prefill", [24, 512])
def test_a_prefill_that_there_is_not(prefill: int, tmp_path: Path) -> None:
    make_tiny("llama", tmp_path / "checkpoint")
    with pytest.raises(RequestError, match=f"prefill of {prefill} tokens .* power of two from 2"):
        export(job_for(tmp_path, "fp32", prefill=prefill), SilentProgress())


def test_weights_that_there_are_not(tmp_path: Path) -> None:
    make_tiny("llama", tmp_path / "checkpoint")
    with pytest.raises(RequestError, match="no weight format 'fp16' for LiteRT"):
        export(job_for(tmp_path, "fp16"), SilentProgress())


def test_a_bundle_of_another_target(tiny_int4: Bundle, tmp_path: Path) -> None:
    make_tiny("llama", tmp_path / "checkpoint")
    job = ExportJob(
        tmp_path / "checkpoint", tmp_path / "bundle", "tiny", scheme="fp32", quality_tokens=0
    )
    other = export(job, SilentProgress())
    with pytest.raises(InvalidOption, match="exported for 'cpu', on the device 'litert'"):
        litert_engine(other)
    with pytest.raises(InvalidOption, match="exported for 'litert', on the device 'cpu'"):
        open_engine(tiny_int4, "cpu")


def test_a_delegate_that_is_none(tiny_int4: Bundle, tmp_path: Path) -> None:
    (tmp_path / "delegate.so").write_bytes(b"nothing")
    for name in ("delegate.so", "absent.so"):
        with pytest.raises(InvalidOption, match=f"{name} cannot be loaded"):
            open_engine(tiny_int4, "litert", options={"delegate": str(tmp_path / name)})


def damaged(bundle: Bundle, folder: Path, data: bytes) -> Bundle:
    """The bundle with another model file of the same name."""
    folder.mkdir()
    (folder / "model.tflite").write_bytes(data)
    return Bundle(folder, bundle.manifest, bundle.sha256)


def test_a_damaged_file(tiny_int4: Bundle, tmp_path: Path) -> None:
    data = tiny_int4.role_file("decoder").read_bytes()
    cases = {
        "empty": b"",
        "short": data[:100],
        "cut off": data[:-1],
        "other": b"x" * len(data),
        "no graph": data[:8] + bytes(4096) + data[4104:],
    }
    for name, wrong in cases.items():
        with pytest.raises(EngineError, match=r"LiteRT cannot load .*model\.tflite"):
            litert_engine(damaged(tiny_int4, tmp_path / name, wrong))


def test_a_file_of_another_model(tiny_int4: Bundle, tmp_path: Path) -> None:
    other = exported(tmp_path, "int4", "qwen2", num_hidden_layers=2)
    data = other.role_file("decoder").read_bytes()
    with pytest.raises(DamagedBundle, match=r"inputs of 'prefill'.*kv_cache_k_2 is missing"):
        litert_engine(damaged(tiny_int4, tmp_path / "mixed", data))


def test_weights_beyond_the_end_of_a_flatbuffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny("llama", tmp_path / "checkpoint")
    decoder = read_decoder(open_checkpoint(tmp_path / "checkpoint"))
    spec = replace(decoder.spec, context_length=64)
    path, static = tmp_path / "model.tflite", StaticShape(prefill_tokens=16, window=64)
    # The file has holes, and takes little of the disk.
    monkeypatch.setattr("edgesdk_export.litert.writer._ALIGNMENT", 2**31)
    write_tflite(Decoder(spec, decoder.weights), path, tflite_scheme(8), static, lambda _: None)
    assert path.stat().st_size > 2**36
    found = litert_logits(path, np.array(TOKENS[:30]))
    wanted = logits_of(stored_decoder(path, spec), TOKENS[:30], rounded_to_8_bits)
    assert np.median(np.abs(found - wanted).max(axis=1)) < 1e-4


def test_the_command_line_needs_no_format(tmp_path: Path) -> None:
    make_tiny("qwen2", tmp_path / "tiny")
    bundle = tmp_path / "bundle"
    arguments = [str(tmp_path / "tiny"), "--target", "litert", "--bits", "4", "--window", "48"]
    arguments += ["--prefill", "16", "--quality-tokens", "0", "--output", str(bundle)]
    done = CliRunner().invoke(export_command, arguments)
    assert done.exit_code == 0, done.output
    manifest = open_bundle(bundle).manifest
    assert (manifest.name, manifest.format) == ("tiny-litert-int4", "litert")
    assert manifest.shape.context_length == 48
    assert "[litert]\nbits = 4" in (bundle / "recipe.toml").read_text()


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """SmolLM2 in 8 bits."""

    def make(path: Path) -> None:
        job = ExportJob(
            smollm2_gguf,
            path,
            "smollm2-litert",
            format="litert",
            target="litert",
            scheme="int8",
            window=512,
            quality_tokens=0,
        )
        export(job, SilentProgress())

    return open_bundle(made_once(tmp_path_factory, "smollm2-litert", make))


def test_smollm2_answers_as_the_cpu_engine_does(smollm2: Bundle, smollm2_fp32: Bundle) -> None:
    exact, engine = open_engine(smollm2_fp32, "cpu"), litert_engine(smollm2)
    with edgesdk.load(smollm2_fp32.path) as model:
        ids = model.runtime.encoder.tokenizer.encode(_TEXT)[:160]
    wanted = exact.new_state().extend(ids, logits="all").copy()
    found = engine.new_state().extend(ids, logits="all")
    meter = DivergenceMeter(np.array(ids[1:]))
    meter.add(wanted[:-1], found[:-1])
    result = meter.result()
    agreement = (found.argmax(axis=1) == wanted.argmax(axis=1)).mean()
    assert math.isfinite(float(result.kl.mean()))
    assert result.kl.mean() < 0.03
    assert agreement > 0.9
    exact.close()
    engine.close()


@pytest.mark.nightly
def test_a_chat_with_structure_and_tools_on_litert(smollm2: Bundle) -> None:
    with edgesdk.load(smollm2.path, device="litert") as model, model.chat() as chat:
        assert model.info.device == "litert"
        assert model.info.name.startswith("LiteRT ")
        assert model.device.in_software
        reply = chat.respond("Name a fruit.", max_tokens=10, temperature=0)
        assert reply.text.strip()
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


_TEXT = "\n".join(
    f"{number} times {number + 3} is {number * (number + 3)}, and rivers flow from the mountains to"
    " the sea, past towns where people trade fish for cloth, salt, iron and stories."
    for number in range(8)
)
