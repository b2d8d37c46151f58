"""Safetensors files: read as the reference library reads them, and never believed."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.checkpoint.safetensors_reader import read_safetensors, read_safetensors_folder
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from edgesdk.errors import CheckpointError, DamagedCheckpoint

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(4, 3) / 7,
    "b": np.linspace(-2, 2, 10).astype(np.float16).reshape(5, 2, 1),
    "c": np.array([1.5, -2.25, 3e30]),
}


def write_raw(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def max_offset(tensors) -> int:
    return max(tensor.region.offset for tensor in tensors.values())


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_rows_are_those_that_were_saved(tmp_path):
    save_file(ARRAYS, tmp_path / "x.safetensors", metadata={"format": "np"})
    tensors = read_safetensors(tmp_path / "x.safetensors")
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "a": "F32",
        "b": "F16",
        "c": "F64",
    }
    for name, array in ARRAYS.items():
        expected = array.astype(np.float32)
        for start in range(len(array) + 1):
            for stop in range(start, len(array) + 1):
                rows = tensors[name].rows(start, stop)
                assert rows.dtype == np.float32
                np.testing.assert_array_equal(rows, expected[start:stop])


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    values = np.array([[1.0, -2.5], [np.inf, 3.140625], [-0.0, 2.0**-133]], np.float32)
    raw = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    path = write_raw(tmp_path / "x.safetensors", {"w": entry("BF16", [3, 2], 0, 12)}, raw)
    tensor = read_safetensors(path)["w"]
    np.testing.assert_array_equal(tensor.rows(0, 3), values)
    np.testing.assert_array_equal(tensor.rows(1, 2), values[1:2])


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8"])
def test_types_without_a_meaning_of_their_own_are_refused(dtype, tmp_path):
    path = write_raw(tmp_path / "x.safetensors", {"w": entry(dtype, [2, 2], 0, 4)}, bytes(4))
    with pytest.raises(CheckpointError, match=rf"'w' is stored as {dtype}"):
        read_safetensors(path)["w"].rows(0, 1)


LIES = {
    "longer than the file": (struct.pack("<Q", 2**62), r"header claims"),
    "not JSON": (write_raw, b"{nope", r"not JSON"),
    "not an object": (write_raw, [], r"not a JSON object"),
    "a name twice": (write_raw, b'{"w":{},"w":{}}', r"occurs twice"),
    "no fields": (write_raw, {"w": {}}, r"'w' has no dtype"),
    "unknown dtype": (write_raw, {"w": entry("F7", [2], 0, 8)}, r"'w' has the unknown dtype 'F7'"),
    "dtype of a wrong kind": (write_raw, {"w": entry([], [2], 0, 8)}, r"unknown dtype"),
    "negative shape": (write_raw, {"w": entry("F32", [-2], 0, 8)}, r"'w' has the shape"),
    "huge shape": (write_raw, {"w": entry("F32", [2**62, 4], 0, 8)}, r"'w' has 8 bytes"),
    "past the end": (write_raw, {"w": entry("F32", [4], 0, 16)}, r"'w' lies at bytes 0 to 16 of 8"),
    "backwards": (write_raw, {"w": entry("F32", [2], 8, 0)}, r"'w' lies at"),
    "too few bytes": (write_raw, {"w": entry("F32", [2], 0, 4)}, r"'w' has 4 bytes"),
    "overlap": (
        write_raw,
        {"v": entry("F32", [2], 0, 8), "w": entry("F32", [1], 4, 8)},
        r"'w' overlaps",
    ),
    "gap": (write_raw, {"w": entry("F32", [1], 4, 8)}, r"'w' leaves a gap"),
    "bytes left over": (write_raw, {"w": entry("F32", [1], 0, 4)}, r"4 bytes, but 8 follow"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_damage(lie, tmp_path):
    path = tmp_path / "x.safetensors"
    if len(LIES[lie]) == 2:
        path.write_bytes(LIES[lie][0])
    else:
        write_raw(path, LIES[lie][1], bytes(8))
    with pytest.raises(DamagedCheckpoint, match=LIES[lie][-1]) as raised:
        read_safetensors(path)
    assert str(path) in str(raised.value)


def test_every_truncation_is_damage(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(ARRAYS, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpoint):
            read_safetensors(path)


def test_a_file_cut_after_it_was_opened(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(ARRAYS, path)
    tensors = read_safetensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    (last,) = (t for t in tensors.values() if t.region.offset == max_offset(tensors))
    with pytest.raises(DamagedCheckpoint, match=f"ends inside tensor '{last.region.tensor}'"):
        last.rows(0, last.shape[0])


@given(data=st.data())
def test_no_mutation_gives_another_exception(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    save_file(ARRAYS, path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        tensors = read_safetensors(path)
        for tensor in tensors.values():
            with np.errstate(all="ignore"):
                assert tensor.rows(0, tensor.shape[0]).shape == tensor.shape
    except CheckpointError:
        pass


class TestShards:
    @pytest.fixture
    def folder(self, tmp_path):
        save_file({"a": ARRAYS["a"]}, tmp_path / "one.safetensors")
        save_file({"b": ARRAYS["b"]}, tmp_path / "two.safetensors")
        self.place(tmp_path, a="one.safetensors", b="two.safetensors")
        return tmp_path

    def place(self, folder: Path, **weight_map: object) -> None:
        index = {"weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    def test_all_are_read(self, folder):
        tensors, files = read_safetensors_folder(folder)
        assert set(tensors) == {"a", "b"}
        assert [file.name for file in files] == ["one.safetensors", "two.safetensors"]

    @pytest.mark.parametrize(
        ("weight_map", "message"),
        [
            ({"a": "one.safetensors"}, None),
            ({"a": "one.safetensors", "b": "one.safetensors"}, r"one.*lacks tensor 'b'"),
            ({"a": "two.safetensors", "b": "two.safetensors"}, r"two.*lacks tensor 'a'"),
            ({"b": "one.safetensors"}, r"one.*lacks tensor 'b'"),
            ({"a": "../one.safetensors"}, r"weight_map"),
            ({"a": ".."}, r"weight_map"),
            ({"a": 7}, r"weight_map"),
            ({"a": "three.safetensors"}, r"three\.safetensors is missing"),
        ],
    )
    def test_an_index_that_disagrees(self, folder, weight_map, message):
        self.place(folder, **weight_map)
        if message is None:
            assert set(read_safetensors_folder(folder)[0]) == {"a"}
            return
        with pytest.raises(DamagedCheckpoint, match=message):
            read_safetensors_folder(folder)


class TestOpening:
    def test_the_hash_covers_the_shards_in_name_order(self, tmp_path):
        import hashlib

        save_file({"a": ARRAYS["a"]}, tmp_path / "z.safetensors")
        save_file({"b": ARRAYS["b"]}, tmp_path / "k.safetensors")
        TestShards().place(tmp_path, a="z.safetensors", b="k.safetensors")
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\n")
        checkpoint = open_checkpoint(tmp_path)
        both = (tmp_path / "k.safetensors").read_bytes() + (tmp_path / "z.safetensors").read_bytes()
        assert checkpoint.sha256() == hashlib.sha256(both).hexdigest()
        assert checkpoint.dtypes == ("F16", "F32")
        assert checkpoint.licence == "mit"
        assert checkpoint.name == tmp_path.name

    @pytest.mark.parametrize("config", [None, b"", b"[]", b"{", b"\xff\xfe"])
    def test_a_config_that_cannot_be_read(self, config, tmp_path):
        save_file(ARRAYS, tmp_path / "model.safetensors")
        if config is not None:
            (tmp_path / "config.json").write_bytes(config)
        with pytest.raises(DamagedCheckpoint, match=r"config\.json"):
            open_checkpoint(tmp_path)

    def test_nothing_to_open(self, tmp_path):
        with pytest.raises(CheckpointError, match="does not exist"):
            open_checkpoint(tmp_path / "nowhere")
        (tmp_path / "pytorch_model.bin").write_bytes(b"")
        with pytest.raises(CheckpointError, match="safetensors"):
            open_checkpoint(tmp_path)
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            open_checkpoint(tmp_path / "pytorch_model.bin")
