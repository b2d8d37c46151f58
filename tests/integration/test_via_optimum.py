"""Architectures that no family file knows, through optimum, against transformers' own logits."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from edgesdk_export import pipeline
from edgesdk_export.onnx import WeightScheme
from edgesdk_export.optimum import environment, run_optimum
from edgesdk_export.optimum.build import OptimumModel, export_with_optimum
from edgesdk_export.optimum.environment import ready_environment
from edgesdk_export.progress import SilentProgress
from edgesdk_export.quality.evaluation_text import EvaluationText
from support.onnx_decoding import OnnxDecoding
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
)

from edgesdk.engines.registry import open_engine
from edgesdk.errors import ExportError

pytestmark = pytest.mark.integration

IDS = [(7 * i * i + 3 * i) % 256 for i in range(40)]
COMMON = {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 128}
MODELS = {
    # Partial rotary, parallel residual, a theta that is not the default.
    "gpt_neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(
            **COMMON,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
            initializer_range=0.2,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 5000.0,
                "partial_rotary_factor": 0.25,
            },
        )
    ),
    # One KV head for all queries, the head tied to the embedding.
    "falcon": lambda: FalconForCausalLM(
        FalconConfig(
            **COMMON,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            multi_query=True,
            new_decoder_architecture=False,
            parallel_attn=True,
            alibi=False,
            bias=False,
            initializer_range=0.2,
        )
    ),
    # Learned positions, and a sliding window in every second layer.
    "gpt_neo": lambda: GPTNeoForCausalLM(
        GPTNeoConfig(
            **COMMON,
            hidden_size=64,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=16,
            initializer_range=0.2,
        )
    ),
}


@pytest.fixture(scope="session")
def optimum_environment() -> Path:
    """Made on the first run (minutes), reused from the user's cache afterwards."""
    try:
        return ready_environment(SilentProgress())
    except ExportError as error:
        if "could not be reached" in str(error):
            pytest.skip(str(error))
        raise


def save(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def export(checkpoint: Path, out: Path, scheme: str) -> OptimumModel:
    work = out.with_name(f"{out.name}-work")
    out.mkdir()
    work.mkdir()
    try:
        chosen = WeightScheme.named(scheme)
        return export_with_optimum(checkpoint, out, lambda _: chosen, SilentProgress(), work=work)
    finally:
        shutil.rmtree(work)


class Exported(NamedTuple):
    model: PreTrainedModel
    checkpoint: Path
    foreign: OptimumModel
    folder: Path


@pytest.fixture(scope="session")
def float32_export(optimum_environment, tmp_path_factory):
    """A function from a name in MODELS to its float32 export, made once."""

    @functools.cache
    def make(name: str) -> Exported:
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        save(model, folder / "checkpoint")
        foreign = export(folder / "checkpoint", folder / "fp32", "fp32")
        return Exported(model, folder / "checkpoint", foreign, folder / "fp32")

    return make


@pytest.fixture(params=MODELS)
def exported(request, float32_export) -> Exported:
    return float32_export(request.param)


@pytest.fixture
def neox(float32_export) -> Exported:
    return float32_export("gpt_neox")


@pytest.fixture
def falcon(float32_export) -> Exported:
    return float32_export("falcon")


def reference(model: PreTrainedModel) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.parametrize("pieces", [[40], [17, 9, 14], [30, *[1] * 10]], ids=str)
def test_logits_are_those_of_transformers(exported, pieces):
    model, _, foreign, folder = exported
    decoding = OnnxDecoding(folder / foreign.model_file, foreign.shape, capacity=61)
    starts = np.cumsum([0, *pieces])
    got = [decoding.extend(IDS[a : a + n]) for a, n in zip(starts, pieces, strict=False)]
    assert np.abs(np.concatenate(got) - reference(model)).max() < 1e-3


def test_hidden_states_are_what_the_head_reads(exported):
    model, _, foreign, folder = exported
    decoding = OnnxDecoding(folder / foreign.model_file, foreign.shape, capacity=48)
    states = decoding.hidden_states(IDS, logits_from=30)
    head = model.get_output_embeddings().weight.detach().numpy()
    assert np.abs(states @ head.T - reference(model)[30:]).max() < 1e-3


def test_logits_from_a_position_on_and_after_a_rewind(exported):
    model, _, foreign, folder = exported
    decoding = OnnxDecoding(folder / foreign.model_file, foreign.shape, capacity=48)
    decoding.extend([*IDS[:20], 5, 6, 7], logits_from=22)
    decoding.rewind(20)
    got = decoding.extend(IDS[20:], logits_from=19)
    assert got.shape == (1, 256)
    assert np.abs(got - reference(model)[-1:]).max() < 1e-3


def test_shape_and_size_are_the_checkpoints(exported):
    model, _, foreign, _ = exported
    config = model.config
    assert foreign.shape.layers == config.num_hidden_layers
    assert foreign.shape.heads == config.num_attention_heads
    assert foreign.shape.head_size == 16
    assert foreign.shape.kv_heads == (1 if config.model_type == "falcon" else 4)
    assert foreign.shape.context_length == 128
    assert foreign.shape.parameters == model.num_parameters()
    assert foreign.shape.sliding_window == (16 if config.model_type == "gpt_neo" else None)
    assert foreign.shape.architecture == type(model).__name__


def divergence(reference_logits: np.ndarray, got: np.ndarray) -> float:
    """Mean KL(reference || got) in nats."""
    expected = torch.log_softmax(torch.tensor(reference_logits), -1)
    return float(
        (expected.exp() * (expected - torch.log_softmax(torch.tensor(got), -1))).sum(-1).mean()
    )


def test_int8_stays_close(neox, tmp_path):
    model, checkpoint, foreign, _ = neox
    small = export(checkpoint, tmp_path / "int8", "int8")
    decoding = OnnxDecoding(tmp_path / "int8" / small.model_file, small.shape, capacity=48)
    assert divergence(reference(model), decoding.extend(IDS)) < 0.002
    assert small.shape == foreign.shape
    assert 8.5 < small.bits_per_weight < 9.5


def test_a_bundle_by_the_pipeline_answers_as_transformers_does(falcon, tmp_path):
    """Twice: the same checkpoint gives the same bytes. int4, with an 8-bit tied head."""
    model, checkpoint, _, _ = falcon
    text = EvaluationText("bytes", "The quick brown fox jumps over the lazy dog. " * 8)
    bundles = [
        pipeline.export(
            pipeline.ExportJob(
                checkpoint=checkpoint,
                destination=tmp_path / name,
                name="tiny-falcon",
                scheme="int4",
                via="optimum",
                text=text,
                quality_tokens=200,
            ),
            SilentProgress(),
        )
        for name in ("one", "two")
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()

    manifest = bundles[0].manifest
    assert manifest.exporter.startswith("optimum 2.1.0")
    assert (manifest.quantization.weights, manifest.quantization.head) == (
        "int4",
        "int8-symmetric",
    )
    engine = open_engine(bundles[0], threads=1)
    with contextlib.closing(engine), contextlib.closing(engine.new_state()) as state:
        first = state.extend(IDS[:30], logits="all").copy()
        got = np.concatenate([first, *(state.extend([i]).copy() for i in IDS[30:])])
    measured = divergence(reference(model), got)
    assert 0 < measured < 0.5
    assert manifest.quality is not None
    assert 0 < manifest.quality.kl_mean < 0.5


def test_a_position_bias_is_refused_by_name(optimum_environment, tmp_path):
    config = MODELS["falcon"]().config
    alibi = FalconForCausalLM(FalconConfig(**{**config.to_dict(), "alibi": True}))
    save(alibi, tmp_path / "checkpoint")
    with pytest.raises(ExportError, match=r"Layer 0 .* adds a bias .* ALiBi"):
        export(tmp_path / "checkpoint", tmp_path / "out", "fp32")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_optimum_says_is_passed_on(optimum_environment, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    save(MODELS["falcon"](), checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=r"missing keys, such as transformer\.h\.2"):
        export(checkpoint, tmp_path / "out", "fp32")


def test_a_misread_rope_is_caught(optimum_environment, tmp_path, monkeypatch):
    """Were the config not translated, the older transformers would use a theta of 10,000."""
    checkpoint = tmp_path / "checkpoint"
    save(MODELS["gpt_neox"](), checkpoint)
    monkeypatch.setattr(run_optimum, "with_older_fields", lambda config: config)
    with pytest.raises(ExportError, match="theta"):
        export(checkpoint, tmp_path / "out", "fp32")


def test_a_failed_installation_leaves_nothing_and_says_why(monkeypatch, tmp_path):
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    monkeypatch.setattr(environment, "PINS", ("no spaces allowed==1",))
    with pytest.raises(ExportError, match="could not be installed"):
        ready_environment(SilentProgress(), place=tmp_path / "env")
    assert not (tmp_path / "env").exists()
    assert not (tmp_path / "env.partial").exists()
