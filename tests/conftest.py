"""Real models for the tests that want them, found through EDGESDK_TEST_MODELS."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def _model(name: str) -> Path:
    folder = os.environ.get("EDGESDK_TEST_MODELS")
    if not folder:
        pytest.skip("EDGESDK_TEST_MODELS names no folder with models")
    path = Path(folder) / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    return _model("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def qwen_coder_gguf() -> Path:
    return _model("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf")
