"""GGUF files: read as the gguf package reads them, and never believed."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.checkpoint.gguf_reader import read_gguf
from edgesdk_export.families import read_decoder
from edgesdk_export.tokenizers import read_text
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesdk.errors import CheckpointError, DamagedCheckpoint

F32 = GGMLQuantizationType.F32


def readable_types() -> list[GGMLQuantizationType]:
    types = []
    for kind, (_, size) in GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        types.append(kind)
    return types


def write_tiny(path: Path) -> Path:
    """A llama of one layer with a vocabulary of 8, quantized in part."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(16)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_name("tiny")
    writer.add_license("mit")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["a", "b", "c", "ab", "abc", "Ġ", "<end>", "d"])
    writer.add_token_types([1, 1, 1, 1, 1, 1, 3, 1])
    writer.add_token_merges(["a b", "ab c"])
    writer.add_eos_token_id(6)
    rng = np.random.default_rng(0)
    norms = ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"]
    for name in norms:
        writer.add_tensor(f"{name}.weight", rng.standard_normal(32).astype(np.float32))
    writer.add_tensor("token_embd.weight", rng.standard_normal((8, 32)).astype(np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        raw = gguf.quantize(
            rng.standard_normal((32, 32)).astype(np.float32), GGMLQuantizationType.Q4_0
        )
        writer.add_tensor(f"blk.0.{name}.weight", raw, raw_dtype=GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny_bytes(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


def test_all_that_ggml_can_store_is_covered():
    names = {kind.name for kind in readable_types()}
    assert {"F32", "F16", "BF16", "Q4_0", "Q8_0", "Q2_K", "Q6_K", "IQ1_S", "IQ4_XS"} <= names


@pytest.mark.parametrize("kind", readable_types(), ids=lambda kind: kind.name)
def test_rows_are_those_of_the_gguf_package(kind, tmp_path):
    block, size = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(int(kind))
    raw = rng.integers(0, 256, (5, 3, 2 * max(1, 32 // block) * size), dtype=np.uint8)
    if kind in (F32, GGMLQuantizationType.F16):
        floats = np.float32 if kind == F32 else np.float16
        raw = rng.standard_normal((5, 3, 64)).astype(floats).view(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("w", raw, raw_dtype=kind)
    writer.add_tensor("v", raw[0, 0], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _, tensors = read_gguf(tmp_path / "x.gguf")
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw.reshape(15, -1), kind).reshape(5, 3, -1)
        assert tensors["w"].shape == expected.shape
        assert tensors["w"].dtype == kind.name
        for start in range(6):
            for stop in range(start, 6):
                np.testing.assert_array_equal(tensors["w"].rows(start, stop), expected[start:stop])
        np.testing.assert_array_equal(tensors["v"].rows(0, 33), expected[0, 0, :33])
        np.testing.assert_array_equal(tensors["v"].rows(7, 12), expected[0, 0, 7:12])


def test_float64_is_read_too(tmp_path):
    values = np.linspace(-3, 3, 12).reshape(4, 3)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("w", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_gguf(tmp_path / "x.gguf")[1]["w"]
    np.testing.assert_array_equal(tensor.rows(1, 3), values[1:3].astype(np.float32))


def test_metadata_is_that_of_the_gguf_package(tiny_bytes, tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_bytes)
    reader = gguf.GGUFReader(path)
    metadata, tensors = read_gguf(path)
    theirs = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    assert metadata == theirs
    assert [*tensors] == [tensor.name for tensor in reader.tensors]
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.name, checkpoint.licence) == ("tiny", "mit")


def test_a_folder_with_two_ggufs_names_them(tiny_bytes, tmp_path):
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / name).write_bytes(tiny_bytes)
    with pytest.raises(CheckpointError, match=r"one\.gguf, two\.gguf"):
        open_checkpoint(tmp_path)


def test_every_truncation_is_damage(tiny_bytes, tmp_path):
    path = tmp_path / "x.gguf"
    # The last tensor's padding is not needed to read it.
    for length in [*range(0, 2000, 7), len(tiny_bytes) // 2, len(tiny_bytes) - 64]:
        path.write_bytes(tiny_bytes[:length])
        with pytest.raises(DamagedCheckpoint):
            read_gguf(path)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def header(tensors: int, entries: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries)


def tensor(name: bytes, dims: list[int], kind: int, offset: int) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return string(name) + shape + struct.pack("<IQ", kind, offset)


def alignment(value: int) -> bytes:
    return string(b"general.alignment") + struct.pack("<II", 4, value)


LIES = {
    "no magic": (b"GGML" + bytes(60), "not a GGUF"),
    "tensor count": (header(2**63, 0), "number of tensors claims"),
    "entry count": (header(0, 2**40), "number of metadata entries claims"),
    "more tensors than there are": (header(9, 0) + tensor(b"w", [4], 0, 0), "ends inside"),
    "key length": (header(0, 1) + struct.pack("<Q", 2**60), "metadata key claims"),
    "key longer than the file": (header(0, 1) + struct.pack("<Q", 9999), "ends inside"),
    "key not UTF-8": (header(0, 1) + string(b"\xff\xff"), "not UTF-8"),
    "value type": (header(0, 1) + string(b"k") + struct.pack("<I", 77), "unknown type 77"),
    "array length": (
        header(0, 1) + string(b"k") + struct.pack("<IIQ", 9, 4, 2**61),
        "value of 'k' claims",
    ),
    "array of arrays": (header(0, 1) + string(b"k") + struct.pack("<IIQ", 9, 9, 1), "arrays"),
    "key twice": (header(0, 2) + 2 * (string(b"k") + struct.pack("<IB", 0, 1)), "'k' occurs twice"),
    "alignment of zero": (header(0, 1) + alignment(0), "alignment 0"),
    "crooked alignment": (header(0, 1) + alignment(48), "alignment 48"),
    "five axes": (header(1, 0) + tensor(b"w", [1] * 5, 0, 0), "axes of 'w' claims 5"),
    "no axes": (header(1, 0) + tensor(b"w", [], 0, 0), "'w' is empty"),
    "empty axis": (header(1, 0) + tensor(b"w", [0, 4], 0, 0), "'w' is empty"),
    "huge axis": (header(1, 0) + tensor(b"w", [2**62], 0, 0), "shape of 'w' claims"),
    "huge product": (header(1, 0) + tensor(b"w", [2**39] * 4, 0, 0), "'w' would lie at"),
    "unknown tensor type": (header(1, 0) + tensor(b"w", [4], 99, 0), "'w' has the unknown type 99"),
    "past the end": (header(1, 0) + tensor(b"w", [4], 0, 2**40), "'w' would lie at"),
    "crooked offset": (header(1, 0) + tensor(b"w", [4], 0, 8), "'w' would lie at"),
    "half a block": (header(1, 0) + tensor(b"w", [40], 2, 0), "'w' has rows of 40 values"),
    "tensor twice": (header(2, 0) + 2 * tensor(b"w", [4], 0, 0), "'w' occurs twice"),
    "overlap": (
        header(2, 0) + tensor(b"v", [16], 0, 0) + tensor(b"w", [4], 0, 32),
        "'w' overlaps",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_damage(lie, tmp_path):
    raw, message = LIES[lie]
    path = tmp_path / "x.gguf"
    path.write_bytes(raw if "ends inside" in message else raw + bytes(256))
    with pytest.raises(DamagedCheckpoint, match=message) as raised:
        read_gguf(path)
    assert str(path) in str(raised.value)


def test_versions_and_splits_that_cannot_be_read(tmp_path):
    path = tmp_path / "x.gguf"
    for version in (struct.pack("<I", 1), struct.pack(">I", 3), struct.pack("<I", 9)):
        path.write_bytes(b"GGUF" + version + bytes(64))
        with pytest.raises(CheckpointError, match="GGUF is not supported"):
            read_gguf(path)
    path.write_bytes(header(0, 1) + string(b"split.count") + struct.pack("<IH", 2, 3))
    with pytest.raises(CheckpointError, match="--merge"):
        read_gguf(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_mutation_gives_another_exception(data, tiny_bytes, tmp_path_factory):
    raw = bytearray(tiny_bytes)
    # The header is where lies are; the data can only be other numbers.
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, 2000))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "x.gguf"
    path.write_bytes(raw)
    with np.errstate(all="ignore"):
        for use in (read_decoder, read_text):
            try:
                checkpoint = open_checkpoint(path)
                for found in checkpoint.tensors.values():
                    assert found.rows(0, found.shape[0]).shape == found.shape
                use(checkpoint)
            except CheckpointError:
                pass
