"""Every export ends with its file on a few tokens; a writer that errs leaves no bundle."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.gguf import build as gguf_build
from edgesdk_export.onnx import build as native
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.selftest import logits
from edgesdk_export.selftest.logits import gguf_logits, onnx_logits
from edgesdk_export.selftest.onnx_decoder import SharedCacheDecoder, piecewise_logits
from edgesdk_export.selftest.weight_noise import checkpoint_logits
from edgesdk_export.weights import Decoder, read_whole
from support.tiny_models import make_tiny

from edgesdk.bundle.opening import Bundle
from edgesdk.errors import ExportError

pytestmark = pytest.mark.integration

IDS = np.array([(7 * i * i + 3 * i) % 320 for i in range(40)], np.int64)
FORMS = [("onnx", "fp32"), ("onnx", "int4"), ("gguf", "f32"), ("gguf", "q4_k_m")]


@dataclasses.dataclass(frozen=True)
class Held:
    """A tensor that is in memory."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> str:
        return "F32"

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.values[start:stop]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with as many keys as queries, so that its projections are square."""
    folder = tmp_path_factory.mktemp("tiny") / "hf"
    make_tiny("llama", folder, num_key_value_heads=4, initializer_range=0.08)
    return folder


def bundle_of(source: Path, target: Path, fmt: str, scheme: str, **settings) -> Bundle:
    job = ExportJob(source, target, "tiny", fmt, scheme=scheme, quality_tokens=0, **settings)
    return export(job, SilentProgress())


def swapped(weights):
    return {
        "layers.1.k.weight": weights["layers.1.v.weight"],
        "layers.1.v.weight": weights["layers.1.k.weight"],
    }


def layers_swapped(weights):
    return {
        "layers.0.o.weight": weights["layers.2.o.weight"],
        "layers.2.o.weight": weights["layers.0.o.weight"],
    }


def transposed(weights):
    return {"layers.1.o.weight": Held(np.ascontiguousarray(whole(weights, "layers.1.o").T))}


def scaled(weights):
    return {"layers.1.v.weight": Held(4 * whole(weights, "layers.1.v"))}


def shifted(weights):
    """Rows of a matrix that stand one place too low."""
    return {"layers.0.v.weight": Held(np.roll(whole(weights, "layers.0.v"), 1, axis=0))}


def whole(weights, name: str) -> np.ndarray:
    return read_whole(weights[f"{name}.weight"])


@contextlib.contextmanager
def sabotaged(fmt: str, harm):
    """The writer of a format gets other weights than the checkpoint's."""
    module, name = {"onnx": (native, "write_decoder"), "gguf": (gguf_build, "write_gguf")}[fmt]
    original = getattr(module, name)

    def write(decoder: Decoder, *arguments, **settings):
        weights = {**decoder.weights, **harm(decoder.weights)}
        return original(Decoder(decoder.spec, weights), *arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, write)
        yield


@pytest.mark.parametrize(("fmt", "scheme"), FORMS)
@pytest.mark.parametrize("harm", [swapped, layers_swapped, transposed, scaled, shifted])
def test_a_writer_that_errs_leaves_no_bundle(fmt, scheme, harm, checkpoint, tmp_path):
    if fmt == "gguf":
        pytest.importorskip("llama_cpp")
    with sabotaged(fmt, harm), pytest.raises(ExportError, match="self-test failed: on 48 tokens"):
        bundle_of(checkpoint, tmp_path / "out" / "b", fmt, scheme)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_stood_there_stays(checkpoint, tmp_path):
    before = bundle_of(checkpoint, tmp_path / "b", "onnx", "int8")
    with sabotaged("onnx", scaled), pytest.raises(ExportError, match="self-test"):
        bundle_of(checkpoint, tmp_path / "b", "onnx", "int4", replace=True)
    assert (tmp_path / "b" / "edgesdk.json").read_text() == before.manifest.to_json()


def test_logits_that_are_no_numbers_fail(checkpoint, tmp_path, monkeypatch):
    original = SharedCacheDecoder.__call__
    monkeypatch.setattr(
        SharedCacheDecoder, "__call__", lambda self, ids, start: original(self, ids, start) * np.nan
    )
    with pytest.raises(ExportError, match="NaN or infinite"):
        bundle_of(checkpoint, tmp_path / "b", "onnx", "fp32")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_ends_too_early_fails(checkpoint, tmp_path, monkeypatch):
    original = native.write_decoder

    def write(decoder, folder, *arguments):
        written = original(decoder, folder, *arguments)
        data = folder / "model.onnx.data"
        data.write_bytes(data.read_bytes()[:-4096])
        return written

    monkeypatch.setattr(native, "write_decoder", write)
    with pytest.raises(ExportError, match=r"onnxruntime cannot run model\.onnx"):
        bundle_of(checkpoint, tmp_path / "b", "onnx", "fp32")
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_that_llama_cpp_cannot_load_fails(checkpoint, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp")
    original = gguf_build.write_gguf

    def write(decoder, path, *arguments, **settings):
        written = original(decoder, path, *arguments, **settings)
        path.write_bytes(path.read_bytes()[:-4096])
        return written

    monkeypatch.setattr(gguf_build, "write_gguf", write)
    with pytest.raises(ExportError, match=r"llama\.cpp cannot run model\.gguf"):
        bundle_of(checkpoint, tmp_path / "b", "gguf", "f32")
    assert list(tmp_path.iterdir()) == []


def test_the_whole_file_gives_the_streamed_logits(checkpoint, tmp_path, monkeypatch):
    """Opened by its engine, run in pieces, and read back without llama.cpp."""
    decoder = read_decoder(open_checkpoint(checkpoint))
    expected = checkpoint_logits(decoder, IDS, None)
    path = bundle_of(checkpoint, tmp_path / "onnx", "onnx", "fp32").file("model.onnx")
    close = {"atol": 1e-4 * np.abs(expected).max()}
    np.testing.assert_allclose(onnx_logits(path, IDS), expected, **close)
    monkeypatch.setattr("edgesdk_export.selftest.onnx_decoder._PIECE_BYTES", 1)
    np.testing.assert_allclose(piecewise_logits(path, IDS, [0, 30, 39, 40]), expected, **close)
    np.testing.assert_allclose(onnx_logits(path, IDS, large=0), expected, **close)
    pytest.importorskip("llama_cpp")
    path = bundle_of(checkpoint, tmp_path / "gguf", "gguf", "f32").file("model.gguf")
    np.testing.assert_allclose(gguf_logits(path, IDS), expected, **close)
    monkeypatch.setattr(logits.importlib.util, "find_spec", lambda name: None)
    np.testing.assert_allclose(gguf_logits(path, IDS), expected, **close)


def test_the_real_model_passes_and_a_wrong_scale_in_one_layer_does_not(
    smollm2_gguf, smollm2_int8, tmp_path
):
    # Every export ends with the self-test; this one went through.
    assert smollm2_int8.manifest.quantization.weights == "int8"

    def harm(weights):
        return {"layers.11.down.weight": Held(np.float32(1.5) * whole(weights, "layers.11.down"))}

    with sabotaged("onnx", harm), pytest.raises(ExportError, match="self-test failed"):
        bundle_of(smollm2_gguf, tmp_path / "b", "onnx", "int8")
    assert list(tmp_path.iterdir()) == []
