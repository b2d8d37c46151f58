"""Published configurations, shrunk: exports compute what transformers and llama.cpp compute, in
prefill, in decode and past a window. `python -m benchmarks.export.published` prints all of them."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_cpp")

from benchmarks.export.published import Differences, measure
from benchmarks.export.published_configs import PUBLISHED

pytestmark = pytest.mark.integration

# One of each kind: a window in each family that has one, ropes, caps, biases, partial rotation.
QUICK = ("Gemma-3-1B", "Phi-4-mini", "Mistral-7B-v0.1")
NIGHTLY = (
    *("Llama-3.1-8B", "DeepSeek-Coder-1.3B", "H2O-Danube3-4B", "SmolLM2-360M"),
    *("Qwen2.5-0.5B", "Qwen2.5-7B with YaRN", "Qwen3-4B-2507", "Gemma-2-2B", "Gemma-3-4B, text"),
    *("Phi-3-mini-4k", "Phi-3.5-mini", "Phi-4-14B"),
)
# Of the largest logit. llama.cpp looks gelu up in a table of float16.
ONNX, GGUF, GELU = 1e-5, 1e-5, 1e-3


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.nightly) for name in NIGHTLY)]
)
def test_logits_are_those_of_transformers(name, tmp_path):
    row = measure(name, tmp_path)
    past = "Gemma" in name or name in ("Mistral-7B-v0.1", "Phi-3-mini-4k", "Phi-3.5-mini")
    check(row.onnx, ONNX * row.largest_logit, past=past or name == "Phi-4-mini")
    windows = name in ("Mistral-7B-v0.1", "Phi-3-mini-4k")
    limit = (GELU if "Gemma" in name else GGUF) * row.largest_logit
    check(row.gguf, limit, past="context ends there" if windows else past or name == "Phi-4-mini")


def check(found: Differences, limit: float, *, past: bool | str) -> None:
    assert isinstance(found.prefill, float), found
    assert isinstance(found.decode, float), found
    assert max(found.prefill, found.decode) < limit
    if isinstance(past, str):
        assert found.past == past
    elif past:
        assert isinstance(found.past, float), found
        assert found.past < limit
    else:
        assert found.past is None


def test_there_are_enough_of_them():
    assert len(PUBLISHED) >= 34
    assert len({str(fields) for fields in PUBLISHED.values()}) >= 34
