"""Every family's static graphs against transformers, run the way the engine of NPUs runs them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.onnx import WeightScheme
from support.static_pairs import static_state
from support.tiny_models import VARIANTS, make_tiny

from edgesdk.bundle.manifest import StaticShape

pytestmark = pytest.mark.integration

# Past every window (24 at most), and past phi3's short factors (32).
TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(48)]
OTHER = [(5 * i * i + i + 11) % 320 for i in range(48)]
TOLERANCE = 1e-4
SHAPE = StaticShape(prefill_tokens=16, window=64, dtype="float32")


def transformers_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def tiny(variant, folder, shape=SHAPE, scheme="fp32", **overrides):
    model = make_tiny(variant, folder, **overrides)
    decoder = read_decoder(open_checkpoint(folder))
    return model, static_state(decoder, folder, scheme=WeightScheme.named(scheme), shape=shape)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant, tmp_path):
    model, state = tiny(variant, tmp_path)
    expected = transformers_logits(model, TOKENS)

    def same(found, wanted):
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE)

    # A short text, which phi3 reads with its short factors.
    same(state.extend(TOKENS[:20]), transformers_logits(model, TOKENS[:20])[-1:])
    state.rewind(0)
    # Three whole chunks; then the same through the decode graph, token by token.
    same(state.extend(TOKENS), expected[-1:])
    with torch.no_grad():
        normed = model(torch.tensor([TOKENS]), output_hidden_states=True).hidden_states[-1][0]
    same(state.hidden_states, normed[-1:].numpy())
    state.rewind(0)
    # In pieces of all sizes, most of them padded. phi3's factors change on the way, and back.
    start = 0
    for size in (5, 1, 1, 17, 2, 1, 21):
        found = state.extend(TOKENS[start : start + size])
        start += size
        same(found, transformers_logits(model, TOKENS[:start])[-1:])
    state.rewind(20)
    other = TOKENS[:20] + OTHER[:11]
    same(state.extend(OTHER[:11], logits="all"), transformers_logits(model, other)[20:])
    singly = state.extend(OTHER[11:14], logits="each")
    for end, row in enumerate(singly, 12):
        same(row, transformers_logits(model, TOKENS[:20] + OTHER[:end])[-1])


@pytest.mark.parametrize("rows", [4, 16])
def test_all_logits_come_several_at_once(rows, tmp_path):
    shape = SHAPE.model_copy(update={"logits_rows": rows})
    model, state = tiny("gemma3", tmp_path, shape)
    expected = transformers_logits(model, TOKENS)
    state.extend(TOKENS[:7])
    found = state.extend(TOKENS[7:], logits="all")
    np.testing.assert_allclose(found, expected[7:], atol=TOLERANCE)
    assert len(state.hidden_states) == len(found)


@pytest.mark.parametrize("variant", ["mistral", "qwen2-windowed"])
def test_texts_longer_than_the_window(variant, tmp_path):
    # Windows of 8 tokens: 16 slots hold what every layer of mistral looks at.
    shape = SHAPE.model_copy(update={"window": 16, "prefill_tokens": 4})
    model, state = tiny(variant, tmp_path, shape)
    if variant == "qwen2-windowed":
        assert state._model.context_length == 16  # its first layer sees all
        return
    expected = transformers_logits(model, TOKENS)
    start = 0
    for size in (30, 1, 1, 9, 7):
        found = state.extend(TOKENS[start : start + size])
        start += size
        np.testing.assert_allclose(found, expected[start - 1][None], atol=TOLERANCE)
    # Little enough to be there still; then too much, so that it has to be computed again.
    for length in (45, 20):
        state.rewind(length)
        found = state.fork().extend(OTHER[:5])
        wanted = transformers_logits(model, TOKENS[:length] + OTHER[:5])[-1:]
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE)


def test_padding_changes_nothing(tmp_path):
    _, padded = tiny("llama", tmp_path)
    _, whole = tiny("llama", tmp_path, SHAPE.model_copy(update={"prefill_tokens": 8}))
    # Eight tokens at the end of 16 rows, or without any padding.
    found, wanted = padded.extend(TOKENS[:8]), whole.extend(TOKENS[:8])
    np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize(("mask_value", "right"), [(-10_000.0, True), (-50.0, False)])
def test_what_is_hidden_stays_hidden_beside_scores_in_the_hundreds(mask_value, right, tmp_path):
    # As those of Qwen2, whose keys have large biases.
    model = make_tiny("llama-biased", tmp_path)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("q_proj.bias", "k_proj.bias")):
                weight.mul_(12)
    model.save_pretrained(tmp_path)
    shape = SHAPE.model_copy(update={"mask_value": mask_value})
    decoder = read_decoder(open_checkpoint(tmp_path))
    state = static_state(decoder, tmp_path, scheme=WeightScheme.named("fp32"), shape=shape)
    # Tokens that come after, and the padding before.
    found = state.extend(TOKENS[:40])
    error = np.abs(found - transformers_logits(model, TOKENS[:40])[-1:]).max()
    assert (error < 1e-3) == right
