"""Every family's fp32 ONNX graph against transformers, run the way an engine runs it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.onnx import WeightScheme, write_decoder
from edgesdk_export.padded_heads import with_padded_heads
from support.onnx_decoding import OnnxDecoding
from support.tiny_models import VARIANTS, make_tiny

pytestmark = pytest.mark.integration

# Past every window (24 at most), and past phi3's short factors (32).
TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(48)]
OTHER = [(5 * i * i + i + 11) % 320 for i in range(48)]
CAPACITY = 64
TOLERANCE = 1e-3


def transformers_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def stepped_logits(model, pieces):
    """Transformers' logits with its own KV cache, fed piece by piece."""
    past, rows = None, []
    with torch.no_grad():
        for piece in pieces:
            result = model(torch.tensor([piece]), past_key_values=past, use_cache=True)
            past = result.past_key_values
            rows.append(result.logits[0].numpy())
    return np.concatenate(rows)


def pieces_of(tokens, sizes):
    ends = np.cumsum(sizes)
    assert ends[-1] == len(tokens)
    return [tokens[end - size : end] for end, size in zip(ends, sizes, strict=True)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant, tmp_path):
    model = make_tiny(variant, tmp_path)
    decoder = read_decoder(open_checkpoint(tmp_path))
    written = write_decoder(decoder, tmp_path, WeightScheme.named("fp32"))
    spec = decoder.spec
    run = OnnxDecoding(tmp_path / written.model_file, spec, capacity=CAPACITY)

    whole = run.extend(TOKENS)
    expected = transformers_logits(model, TOKENS)
    np.testing.assert_allclose(whole, expected, atol=TOLERANCE, err_msg="prefill")
    # A short text, which phi3 reads with its short factors.
    run.rewind(0)
    np.testing.assert_allclose(
        run.extend(TOKENS[:20]), transformers_logits(model, TOKENS[:20]), atol=TOLERANCE
    )
    # Chunks onto a cache that is not empty, single tokens among them.
    sizes = [10, 1, 7, 1, 1, 12, 1, 2, 9, 1, 1, 1, 1]
    run.rewind(0)
    pieces = pieces_of(TOKENS, sizes)
    chunked = np.concatenate([run.extend(piece) for piece in pieces])
    np.testing.assert_allclose(
        chunked, stepped_logits(model, pieces), atol=TOLERANCE, err_msg="chunks"
    )
    # A rewind leaves the old keys behind in the buffers; they must not be seen.
    run.rewind(36)
    after = np.concatenate([run.extend(OTHER[:5]), *(run.extend([t]) for t in OTHER[5:9])])
    pieces = [*pieces[:8], TOKENS[35:36], OTHER[:5], *([t] for t in OTHER[5:9])]
    np.testing.assert_allclose(
        after, stepped_logits(model, pieces)[36:], atol=TOLERANCE, err_msg="rewind"
    )
    # The last logits alone are the last row of all of them.
    run.rewind(0)
    last = run.extend(TOKENS, logits_from=len(TOKENS) - 1)
    assert last.shape == (1, spec.vocab_size)
    np.testing.assert_allclose(last[0], expected[-1], atol=TOLERANCE)
    # What the head reads, of the positions that logits are wanted of.
    with torch.no_grad():
        normed = model(torch.tensor([TOKENS]), output_hidden_states=True).hidden_states[-1][0]
    states = run.hidden_states(TOKENS, logits_from=5)
    np.testing.assert_allclose(states, normed[5:].numpy(), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("variant", "overrides"),
    [
        # onnxruntime's attention rotates only sizes that are multiples of 16.
        ("qwen2", {"hidden_size": 96}),
        ("llama", {"head_dim": 8}),
        (
            "phi3-longrope",
            {
                "hidden_size": 64,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 10_000.0,
                    "partial_rotary_factor": 0.5,
                    "short_factor": [1.0, 1.1, 1.2, 1.3],
                    "long_factor": [1.0, 2.0, 3.0, 4.0],
                    "original_max_position_embeddings": 32,
                },
            },
        ),
    ],
)
def test_rope_sizes_that_attention_cannot_rotate(variant, overrides, tmp_path):
    model = make_tiny(variant, tmp_path, **overrides)
    decoder = read_decoder(open_checkpoint(tmp_path))
    written = write_decoder(decoder, tmp_path, WeightScheme.named("fp32"))
    run = OnnxDecoding(tmp_path / written.model_file, decoder.spec, capacity=CAPACITY)
    pieces = pieces_of(TOKENS, [20, 1, 8, 1, 17, 1])
    chunked = np.concatenate([run.extend(piece) for piece in pieces])
    np.testing.assert_allclose(chunked, stepped_logits(model, pieces), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("variant", "size"), [("llama", 12), ("llama-biased", 20), ("qwen3", 6), ("gemma2", 36)]
)
def test_heads_whose_size_onnxruntime_does_not_take_are_padded(variant, size, tmp_path):
    model = make_tiny(variant, tmp_path, head_dim=size)
    decoder = with_padded_heads(read_decoder(open_checkpoint(tmp_path)))
    assert decoder.spec.head_size % 8 == 0
    written = write_decoder(decoder, tmp_path, WeightScheme.named("fp32"))
    run = OnnxDecoding(tmp_path / written.model_file, decoder.spec, capacity=CAPACITY)
    pieces = pieces_of(TOKENS, [20, 1, 8, 1, 17, 1])
    chunked = np.concatenate([run.extend(piece) for piece in pieces])
    np.testing.assert_allclose(chunked, stepped_logits(model, pieces), atol=TOLERANCE)
