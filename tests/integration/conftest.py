"""Bundles of the real model, exported once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.weights import Decoder
from support.exported import made_once
from support.tiny_models import make_tiny

from edgesdk.bundle.opening import Bundle, open_bundle

# Enough to compare with what others compute of the same tokens; `edgesdk export` takes 8,192.
QUALITY_TOKENS = 1_024


@pytest.fixture(scope="session", autouse=True)
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What these tests measure on batched verification stays out of the user's cache."""
    folder = tmp_path_factory.mktemp("verdicts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgesdk.engines.onnx.verification_batch.default_folder", lambda: folder)
        yield


def _bundle(gguf: Path, scheme: str, factory: pytest.TempPathFactory) -> Bundle:
    def make(path: Path) -> None:
        job = ExportJob(
            checkpoint=gguf,
            destination=path,
            name=f"smollm2-135m-instruct-{scheme}",
            scheme=scheme,
            quality_tokens=QUALITY_TOKENS,
        )
        export(job, SilentProgress())

    return open_bundle(made_once(factory, f"smollm2-{scheme}", make))


@pytest.fixture(scope="session")
def smollm2_fp32(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """SmolLM2 in float32."""
    return _bundle(smollm2_gguf, "fp32", tmp_path_factory)


@pytest.fixture(scope="session")
def smollm2_int8(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """SmolLM2 in 8 bits."""
    return _bundle(smollm2_gguf, "int8", tmp_path_factory)


@pytest.fixture(scope="session")
def smollm2_int4(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """SmolLM2 in 4 bits."""
    return _bundle(smollm2_gguf, "int4", tmp_path_factory)


@pytest.fixture(scope="module", params=["qwen2", "llama-biased"])
def tiny_decoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Decoder:
    """A tied one, and one with a head of its own."""
    folder = tmp_path_factory.mktemp(request.param)
    make_tiny(request.param, folder)
    return read_decoder(open_checkpoint(folder))
