"""Real models for the tests: from a folder that is named, or from the store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgesdk.store import Store


def _find(file_name: str, store_name: str) -> Path:
    folder = os.environ.get("EDGESDK_TEST_MODELS")
    if folder is not None and (Path(folder) / file_name).is_file():
        return Path(folder) / file_name
    entry = Store().find(store_name, "checkpoint")
    if entry is not None:
        return entry.path
    pytest.skip(f"{store_name} is not here: run `edgesdk pull {store_name}` or `make test`")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, GGUF Q4_1."""
    return _find("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct")


@pytest.fixture(scope="session")
def qwen_coder_gguf() -> Path:
    """Qwen2.5-Coder-1.5B-Instruct, GGUF Q4_K_M."""
    return _find("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", "qwen2.5-coder-1.5b-instruct")
