"""ggml types, byte for byte against llama.cpp's own quantizing of a whole model."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from edgesdk_export.checkpoint.gguf_reader import read_gguf_contents
from edgesdk_quantize.formats.ggml import GGML_FORMATS, fallback

pytest.importorskip("llama_cpp")
import llama_cpp
from support.tiny_ggufs import write_tiny_gguf
from support.tiny_models import make_tiny

pytestmark = pytest.mark.integration

# `llama_ftype` of llama.h, by the type that a pure file of it has.
FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 14,
    "Q5_K": 16,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "BF16": 32,
}
BY_NAME = {fmt.name: fmt for fmt in GGML_FORMATS}


def write_plain(folder, inner):
    sizes = {"hidden_size": 256, "intermediate_size": inner, "num_hidden_layers": 1}
    model = make_tiny("llama", folder / "hf", **sizes)
    write_tiny_gguf(model, folder / "f32.gguf")
    return folder / "f32.gguf"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A float32 GGUF: rows of 256 values, those of `down` of 288, which no 256 divides."""
    return write_plain(tmp_path_factory.mktemp("plain"), 288)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """The same, but no 32 divides the rows of `down`."""
    return write_plain(tmp_path_factory.mktemp("odd"), 272)


def tensors_of(path):
    """Raw bytes [rows, row_bytes] and ggml type by name, of the matrices."""
    raw = path.read_bytes()
    return {
        info.name: (
            np.frombuffer(raw, np.uint8, info.size, info.offset).reshape(-1, info.row_bytes),
            info.type.name,
        )
        for info in read_gguf_contents(path).tensors
        if len(info.shape) == 2
    }


def importance_of(name, columns):
    seed = sum(name.encode())
    return np.random.default_rng(seed).gamma(0.5, size=columns).astype(np.float32)


def llama_quantize(source, target, file_type, importance):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = file_type, True, 1
    # One entry more than there are: its missing name ends the list.
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), len(values)
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if importance:
        params.imatrix = entries
    files = str(source).encode(), str(target).encode()
    assert llama_cpp.llama_model_quantize(*files, params) == 0


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("name", FILE_TYPES)
def test_bytes_are_those_of_llama_quantize(name, weighted, plain, tmp_path):
    floats = {key: raw.view(np.float32) for key, (raw, _) in tensors_of(plain).items()}
    importance = {
        key: importance_of(key, values.shape[1]) for key, values in floats.items() if weighted
    }
    llama_quantize(plain, tmp_path / "q.gguf", FILE_TYPES[name], importance)
    theirs = tensors_of(tmp_path / "q.gguf")
    assert len(theirs) > 5
    for key, (raw, kind) in theirs.items():
        fmt = fallback(BY_NAME[name], floats[key].shape[1])
        assert kind == fmt.name, key
        np.testing.assert_array_equal(fmt.quantize(floats[key], importance.get(key)), raw, key)


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_rows_that_no_32_divides_become_f16(name, odd, tmp_path):
    llama_quantize(odd, tmp_path / "q.gguf", FILE_TYPES[name], {})
    raw, kind = tensors_of(tmp_path / "q.gguf")["blk.0.ffn_down.weight"]
    floats = tensors_of(odd)["blk.0.ffn_down.weight"][0].view(np.float32)
    assert kind == fallback(BY_NAME[name], 272).name == "F16"
    np.testing.assert_array_equal(BY_NAME[kind].quantize(floats), raw)
