"""Adapters against peft's merged models: the same logits, each its own, and never another's."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from edgesdk_export.adapters.export import AdapterJob, export_adapter
from edgesdk_export.families.config_json import config_sources
from edgesdk_export.onnx.stored_weights import matrix_parts, read_stored
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_quantize.formats.blocks import PackedMatrix, dequantize
from support.command_line import MAIN, edgesdk_here, environment
from support.peft_adapters import save_lora
from support.served import served
from support.tiny_models import make_tiny
from tiny_onnx_bundle import write_tiny_bundle

import edgesdk
from edgesdk.bundle.adapter import Adapter
from edgesdk.bundle.opening import Bundle
from edgesdk.bundle.spec import canonical_shapes
from edgesdk.engines.registry import open_engine
from edgesdk.errors import (
    AdapterMismatch,
    BundleError,
    DamagedBundle,
    ExportError,
    InvalidOption,
    RequestError,
)
from edgesdk.generation.prefix_cache import PrefixCache
from edgesdk.server.adapted_models import AdaptedModels
from edgesdk.server.model_pool import StoreModels
from edgesdk.store import Store

pytestmark = pytest.mark.integration

# Past every window.
TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(40)]
TOLERANCE = 1e-3
SCHEMES = {"onnx": "fp32", "gguf": "f32"}
OTHER_SCHEMES = {"onnx": "fp16", "gguf": "f16"}


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


@dataclass(frozen=True)
class AdaptedTiny:
    """A tiny model's checkpoint, a bundle of it, two adapters and peft's merged models."""

    checkpoint: Path
    model: Any
    bundle: Bundle
    adapters: tuple[Adapter, Adapter]
    merged: tuple[Any, Any]


@pytest.fixture(scope="module", params=SCHEMES)
def tiny(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = make_tiny("llama", folder / "checkpoint")
    bundle = export_tiny(folder / "checkpoint", folder / "bundle", request.param)
    # Other matrices, so other graphs; and another rank.
    first = adapted(model, folder, bundle, "first", seed=1)
    second = adapted(model, folder, bundle, "second", seed=2, r=2, target_modules=["v_proj"])
    return AdaptedTiny(
        folder / "checkpoint", model, bundle, (first[0], second[0]), (first[1], second[1])
    )


def greedy(model, tokens, count):
    """What transformers' own model answers with the likeliest tokens."""
    found = list(tokens)
    for _ in range(count):
        found.append(int(logits_of(model, found)[-1].argmax()))
    return tuple(found[len(tokens) :])


def answer(model, text, count=6):
    return model.complete(text, max_tokens=count).receipt.tokens


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


@pytest.mark.usefixtures("float32_caches")
def test_several_adapters_and_none_answer_at_once_each_by_itself(tiny):
    text = "Where do rivers rise?"
    with edgesdk.load(tiny.bundle.path, device="cpu") as base:
        models = [base, *(base.with_adapter(each.path) for each in tiny.adapters)]
        assert [model.name for model in models] == ["tiny", "tiny:first", "tiny:second"]
        tokens = base.runtime.encoder.plain(text)
        references = (tiny.model, *tiny.merged)
        expected = [greedy(reference, tokens, 6) for reference in references]
        assert len(set(expected)) == 3
        streams = [iter(model.stream_completion(text, max_tokens=6)) for model in models]
        # One piece of each at a time.
        for _ in range(8):
            for stream in streams:
                next(stream, None)
        assert [answer(model, text) for model in models] == expected
        with ThreadPoolExecutor(3) as threads:
            assert list(threads.map(lambda model: answer(model, text), models)) == expected
        reply = models[1].complete(text, max_tokens=2)
        assert reply.receipt.adapter == "first"
        assert "adapter first" in reply.receipt.line()
        assert base.complete(text, max_tokens=2).receipt.adapter is None
        # What they share outlives the model that they came from.
        base.close()
        assert answer(models[2], text) == expected[2]
        for model in models[1:]:
            model.close()


def test_an_adapter_is_loaded_without_the_model_alone(tiny):
    text = "Where do rivers rise?"
    with edgesdk.load(tiny.bundle.path, device="cpu", adapter=tiny.adapters[0].path) as model:
        assert model.name == "tiny:first"
        assert model.adapter == "first"
        # Another takes its place; it does not add to it.
        with model.with_adapter(tiny.adapters[1].path) as other:
            alone = edgesdk.load(tiny.bundle.path, device="cpu", adapter=tiny.adapters[1].path)
            with alone:
                assert answer(other, text) == answer(alone, text)


def test_forks_saved_states_and_prefixes_belong_to_one_adapter(tiny, tmp_path):
    cache = PrefixCache(tmp_path / "prefixes", min_tokens=4)
    with edgesdk.load(tiny.bundle.path, device="cpu", prefix_cache=cache) as base:
        first, second = (base.with_adapter(each.path) for each in tiny.adapters)
        engine = first.runtime.engine
        state = engine.new_state()
        state.extend(TOKENS[:20])
        path = tmp_path / "saved"
        state.save(path)
        onwards = state.fork().extend(TOKENS[20:30], logits="all").copy()
        again = engine.new_state()
        again.restore(path)
        np.testing.assert_array_equal(again.extend(TOKENS[20:30], logits="all"), onwards)
        for other, name in ((second, "second"), (base, "none")):
            with pytest.raises(RequestError, match=f"another adapter: first, not {name}"):
                other.runtime.engine.new_state().restore(path)
        assert first.cache_prefix("A long beginning of many prompts, ") > 4
        names = {folder.name for folder in cache.folder.iterdir() if folder.is_dir()}
        assert len(names) == 1
        second.cache_prefix("A long beginning of many prompts, ")
        assert len([folder for folder in cache.folder.iterdir() if folder.is_dir()]) == 2
        identities = {model.runtime.engine.kv_identity.model for model in (base, first, second)}
        assert len(identities) == 3
        first.close()
        second.close()


def test_an_adapter_for_another_bundle_is_refused(tiny, tmp_path):
    form = tiny.bundle.manifest.format
    other = export_tiny(tiny.checkpoint, tmp_path / "other", form, scheme=OTHER_SCHEMES[form])
    with pytest.raises(AdapterMismatch, match="is for another bundle than"):
        edgesdk.load(other.path, device="cpu", adapter=tiny.adapters[0].path)
    with (
        edgesdk.load(other.path, device="cpu") as model,
        pytest.raises(AdapterMismatch, match="is for another bundle than"),
    ):
        model.with_adapter(tiny.adapters[0].path)


def test_a_damaged_adapter_is_refused(tiny, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny.adapters[0].path, broken)
    file = broken / tiny.adapters[0].manifest.roles["adapter"]
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(DamagedBundle, match="is damaged: its hash is another"):
        edgesdk.load(tiny.bundle.path, device="cpu", adapter=broken)
    file.unlink()
    with pytest.raises(DamagedBundle, match="is missing from the adapter"):
        edgesdk.load(tiny.bundle.path, device="cpu", adapter=broken)
    with pytest.raises(BundleError, match="is not an adapter of edgesdk"):
        edgesdk.load(tiny.bundle.path, device="cpu", adapter=tmp_path)


def test_the_same_lora_gives_the_same_bytes_and_replaces_adapters_only(tiny, tmp_path):
    peft = tiny.adapters[0].path.with_name("first-peft")
    job = AdapterJob(peft, tiny.bundle.path, tmp_path / "again", "first")
    assert export_adapter(job).sha256 == tiny.adapters[0].sha256
    with pytest.raises(BundleError, match="exists already"):
        export_adapter(job)
    assert export_adapter(dataclasses.replace(job, replace=True)).sha256
    with pytest.raises(BundleError, match="exists already"):
        export_adapter(dataclasses.replace(job, destination=tiny.bundle.path, replace=True))


def test_a_merged_adapter_is_in_the_weights(tiny, tmp_path):
    form = tiny.bundle.manifest.format
    job = ExportJob(
        tiny.checkpoint,
        tmp_path / "merged",
        "merged",
        format=form,
        scheme=SCHEMES[form],
        quality_tokens=0,
        merge_adapter=tiny.adapters[0].path.with_name("first-peft"),
    )
    bundle = export(job, SilentProgress())
    rows = open_engine(bundle, "cpu").new_state().extend(TOKENS, logits="all")
    # llama.cpp's float16 caches.
    tolerance = TOLERANCE if form == "onnx" else 5e-2
    np.testing.assert_allclose(rows, logits_of(tiny.merged[0], TOKENS), atol=tolerance)
    assert bundle.manifest.notes[-1] == "The LoRA first-peft is merged into it."


def test_an_adapter_joins_a_model_that_the_server_has_loaded(tiny, tmp_path):
    store = StoreModels([str(tiny.bundle.path)], store=Store(tmp_path), device="cpu")
    models = AdaptedModels(store, [each.path for each in tiny.adapters])
    names = ["tiny", "tiny:first", "tiny:second"]
    assert [info.name for info in models.list_models()] == names
    assert models.find("tiny:third") is None
    assert models.memory("tiny:first") == models.memory("tiny") + tiny.adapters[0].size
    base = models.load("tiny")
    first = models.load("tiny:first")
    assert first.adapter == "first"
    base.close()
    second = models.load("tiny:second")
    text = "Where do rivers rise?"
    assert answer(first, text) != answer(second, text)
    first.close()
    second.close()
    # All are closed: it is loaded anew.
    with models.load("tiny:first") as again:
        assert again.adapter == "first"
    with pytest.raises(InvalidOption, match="Two adapters are called"):
        AdaptedModels(store, [tiny.adapters[0].path, tiny.adapters[0].path])
    with pytest.raises(AdapterMismatch, match="which this server does not have"):
        AdaptedModels(StoreModels(store=Store(tmp_path)), [tiny.adapters[0].path])


def dequantized(bundle, model):
    """A copy of transformers' model with the weights that an ONNX bundle stores."""
    spec, stored = bundle.decoder_spec(), read_stored(bundle.role_file("decoder"))
    names = {name: source.tensor for name, source in config_sources(spec).items()}
    state = copy.deepcopy(model.state_dict())
    for matrix, parts in matrix_parts(spec).items():
        shapes = [canonical_shapes(spec)[f"{part}.weight"] for part in parts]
        columns, scales = shapes[0][1], stored[f"{matrix}.scales"].numpy()
        # An embedding of its own is only gathered from.
        found = stored[f"{matrix}.codes" if f"{matrix}.codes" in stored else f"{matrix}.rows"]
        codes = found.numpy().reshape(*scales.shape, -1)
        zeros = f"{matrix}.zero_points"
        packed = PackedMatrix(codes, scales, stored[zeros].numpy() if zeros in stored else None)
        bits = codes.shape[2] * 8 * codes.shape[1] // columns
        rows = np.split(
            dequantize(packed, bits=bits, columns=columns),
            np.cumsum([shape[0] for shape in shapes])[:-1],
        )
        for part, values in zip(parts, rows, strict=True):
            state[names[f"{part}.weight"]] = torch.from_numpy(np.ascontiguousarray(values))
    changed = copy.deepcopy(model)
    changed.load_state_dict(state)
    return changed


def test_on_an_int4_bundle_it_is_the_adapter_of_the_stored_weights(tmp_path):
    model = make_tiny("llama", tmp_path / "checkpoint")
    bundle = export_tiny(tmp_path / "checkpoint", tmp_path / "bundle", "onnx", scheme="int4")
    base = dequantized(bundle, model)
    adapter, merged = adapted(base, tmp_path, bundle, "first")
    assert adapter.manifest.dtype == "float16"
    alone, changed = logits_of(base, TOKENS), logits_of(merged, TOKENS)
    found = open_engine(bundle, "cpu").new_state().extend(TOKENS, logits="all")
    # The kernels round activations to 8 bits, with an adapter and without.
    noise = np.abs(found - alone).mean()
    state = open_engine(bundle, "cpu", adapter=adapter).new_state()
    assert np.abs(state.extend(TOKENS, logits="all") - changed).mean() < 2 * noise
    assert np.abs(changed - alone).mean() > 10 * noise


def test_the_command_line_makes_an_adapter_and_answers_with_it(tiny, tmp_path):
    peft, folder = tiny.adapters[0].path.with_name("first-peft"), tmp_path / "mine"
    bundle = str(tiny.bundle.path)
    made = edgesdk_here(
        *("export", "--adapter", str(peft), bundle, "--output", str(folder), "--name", "Mine"),
        home=tmp_path,
    )
    assert "mine: an adapter of rank 4 for tiny" in made.stdout
    asked = ("run", bundle, "--device", "cpu", "--adapter", str(folder), "--json", "Hello")
    said = json.loads(edgesdk_here(*asked, "--max-tokens", "2", home=tmp_path).stdout)
    assert said["receipt"]["adapter"] == "mine"
    more = ("--device", "cpu", "--max-tokens", "8")
    alone, changed = (
        edgesdk_here("chat", bundle, *more, *adapter, home=tmp_path, stdin=b"Hello\n").stdout
        for adapter in ((), ("--adapter", str(folder)))
    )
    assert alone != changed
    assert said["text"] in changed
    refused = edgesdk_here(
        *("export", "--adapter", str(peft), bundle, "--bits", "4"), home=tmp_path, expect=2
    )
    assert "--bits is of bundles" in refused.stderr


def test_a_server_process_answers_with_an_adapter(tiny, tmp_path):
    folder = tiny.adapters[0].path
    command = [*MAIN, "serve", str(tiny.bundle.path), "--device", "cpu", "--port", "0"]
    with subprocess.Popen(
        [*command, "--adapter", str(folder)],
        env=environment(EDGESDK_HOME=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            url = re.search(r"http://127.0.0.1:\d+", process.stdout.readline())[0]
            names = [each["id"] for each in httpx.get(f"{url}/v1/models").json()["data"]]
            adapted_name = f"{names[0]}:{tiny.adapters[0].name}"
            assert adapted_name in names
            body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
            answers = [
                httpx.post(f"{url}/v1/chat/completions", json=body | {"model": name}).json()
                for name in (names[0], adapted_name)
            ]
        finally:
            process.terminate()
    alone, changed = (each["choices"][0]["message"]["content"] for each in answers)
    assert alone != changed


def test_a_server_lists_adapters_and_answers_with_them(tiny, tmp_path):
    store = StoreModels([str(tiny.bundle.path)], store=Store(tmp_path), device="cpu")
    models = AdaptedModels(store, [each.path for each in tiny.adapters])
    text = "Where do rivers rise?"
    with served(models, max_models=3) as server:
        names = [entry["id"] for entry in server.get("/v1/models").json()["data"]]
        assert names == ["tiny", "tiny:first", "tiny:second"]
        answers = []
        for name in names:
            asked = {"model": name, "prompt": text, "max_tokens": 6, "temperature": 0}
            done = server.post("/v1/completions", json=asked)
            assert done.status_code == 200, done.text
            answers.append(done.json()["choices"][0]["text"])
        assert len(set(answers)) == 3
        missing = server.post("/v1/completions", json={"model": "tiny:third", "prompt": text})
        assert missing.status_code == 404


def test_bundles_that_run_no_adapters_are_refused(tiny, tmp_path):
    # Whoever drew its graph did not say what it computes.
    foreign = write_tiny_bundle(tmp_path / "foreign")
    peft = tiny.adapters[0].path.with_name("first-peft")
    with pytest.raises(ExportError, match=r"runs no adapters.*--merge-adapter"):
        export_adapter(AdapterJob(peft, foreign.path, tmp_path / "adapter", "first"))
    assert not (tmp_path / "adapter").exists()
