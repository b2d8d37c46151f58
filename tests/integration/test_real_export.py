"""SmolLM2 from its GGUF to bundles: right, reproducible, and as good as it says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.quality.evaluation_text import cut_windows, default_text
from tokenizers import Tokenizer

from edgesdk.bundle.opening import Bundle, verify_bundle
from edgesdk.engines.registry import open_engine

pytestmark = pytest.mark.integration

PROMPTS = (
    "The capital of France is",
    "Once upon a time, there was a small",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "The three primary colours are",
    "Dear Sir or Madam,\n\nI am writing to",
    "import numpy as np\n\nx = np.",
    "Photosynthesis is the process by which",
    "1, 1, 2, 3, 5, 8,",
    "The quick brown fox",
    "In 1969, humans first",
    "To make a good cup of tea,",
    "SELECT name, age FROM",
    "The opposite of hot is",
    "Bonjour, je m'appelle",
    "<|im_start|>user\nName three rivers.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n",
    "Chapter 1\n\nIt was a dark",
    "A list of fruits:\n- apple\n- ",
    "The speed of light is approximately",
)
NEW_TOKENS = 64


@pytest.fixture(scope="module")
def transformers_model(smollm2_gguf: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    ).eval()


@pytest.mark.parametrize(
    "prompts",
    [
        PROMPTS[::4],
        pytest.param(sorted(set(PROMPTS) - set(PROMPTS[::4])), marks=pytest.mark.nightly),
    ],
    ids=["some", "the rest"],
)
def test_greedy_tokens_equal_transformers(
    prompts: tuple[str, ...], smollm2_fp32: Bundle, transformers_model
) -> None:
    """20 prompts of 64 tokens. If every token is transformers' argmax after the ones before it,
    transformers' own greedy decoding gives the same tokens, by induction."""
    tokenizer = Tokenizer.from_file(str(smollm2_fp32.file("tokenizer.json")))
    engine = open_engine(smollm2_fp32)
    for prompt in prompts:
        ids = tokenizer.encode(prompt).ids
        with torch.no_grad():
            state = engine.new_state()
            logits = state.extend(ids)
            answer = [int(logits[-1].argmax())]
            while len(answer) < NEW_TOKENS:
                answer.append(int(state.extend(answer[-1:])[-1].argmax()))
            state.close()
            whole = transformers_model(torch.tensor([ids + answer[:-1]])).logits[0]
        expected = whole[len(ids) - 1 :].argmax(dim=-1).tolist()
        assert answer == expected, prompt
    engine.close()


def test_int8_is_as_good_as_the_best_known(smollm2_int8: Bundle) -> None:
    """An onnxruntime 8-bit export of this checkpoint measured KL 0.004 and 96.5 % agreement."""
    quality = smollm2_int8.manifest.quality
    assert quality is not None
    assert quality.kl_mean < 0.0055
    assert quality.top1_agreement > 0.955
    assert quality.perplexity == pytest.approx(quality.checkpoint_perplexity, rel=0.02)


def test_int4_is_better_than_plain_rounding(smollm2_int4: Bundle) -> None:
    """Asymmetric int4 at the same size, rounded to nearest, measured KL 0.253, agreement 71.7 %."""
    quality = smollm2_int4.manifest.quality
    assert quality is not None
    assert quality.kl_mean < 0.253
    assert quality.top1_agreement > 0.717
    assert smollm2_int4.manifest.quantization.bits_per_weight < 6
    assert smollm2_int4.size < 106_000_000


def test_fp32_is_the_checkpoint(smollm2_fp32: Bundle) -> None:
    quality = smollm2_fp32.manifest.quality
    assert quality is not None
    assert quality.kl_mean < 1e-6
    assert quality.top1_agreement > 0.999


def test_quality_is_that_of_the_bundle_as_engines_run_it(
    smollm2_int4: Bundle, transformers_model
) -> None:
    """The streamed measurement against transformers on one side and the engine on the other."""
    stored = smollm2_int4.manifest.quality
    assert stored is not None
    windows = cut_windows(
        default_text(),
        smollm2_int4.file("tokenizer.json").read_bytes(),
        tokens=stored.tokens,
        bos=None,
        context=8192,
    )
    engine = open_engine(smollm2_int4)
    kls, same = [], []
    for row in windows.ids:
        state = engine.new_state()
        q = torch.log_softmax(torch.tensor(state.extend(row, logits="all")[:-1]).double(), -1)
        with torch.no_grad():
            p = torch.log_softmax(transformers_model(torch.tensor(row[None])).logits[0, :-1], -1)
        p = p.double()
        kls.append((p.exp() * (p - q)).sum(-1).numpy())
        same.append((p.argmax(-1) == q.argmax(-1)).numpy())
        state.close()
    engine.close()
    kl = np.concatenate(kls)
    assert len(kl) == stored.tokens
    assert kl.mean() == pytest.approx(stored.kl_mean, rel=0.02)
    assert np.quantile(kl, 0.99) == pytest.approx(stored.kl_p99, rel=0.1)
    assert np.concatenate(same).mean() == pytest.approx(stored.top1_agreement, abs=0.01)


def test_the_same_export_gives_the_same_bytes_and_eight_bits_are_its_default(
    smollm2_gguf: Path, smollm2_int8: Bundle, tmp_path: Path
) -> None:
    """A model this small gets 8 bits where nothing is asked."""
    job = ExportJob(
        checkpoint=smollm2_gguf,
        destination=tmp_path / "again",
        name=smollm2_int8.manifest.name,
        quality_tokens=0,
    )
    again = export(job, SilentProgress())
    assert again.manifest.quantization == smollm2_int8.manifest.quantization
    assert again.manifest.files == smollm2_int8.manifest.files
    unmeasured = smollm2_int8.manifest.model_copy(update={"quality": None})
    assert again.manifest == unmeasured
    verify_bundle(again)


def test_spec_and_shape_are_stored(smollm2_gguf: Path, smollm2_int8: Bundle) -> None:
    spec = read_decoder(open_checkpoint(smollm2_gguf)).spec
    stored = smollm2_int8.manifest.spec
    assert stored is not None
    assert stored["rope"]["theta"] == 100_000
    assert set(stored) == {field.name for field in dataclasses.fields(spec)}
    assert smollm2_int8.manifest.shape.parameters == 134_515_008
