from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesdk.engines.saved import KvOrigin, read_saved, write_saved
from edgesdk.errors import RequestError

ORIGIN = KvOrigin(engine="onnx", model="ab" * 32, layout="float32, 2 layers")
TOKENS = [5, 0, 151_935]
PARTS = [np.arange(12, dtype=np.float32).reshape(3, 4)[:, :2], np.ones(3, np.float16)]
PAYLOAD = b"".join(part.tobytes() for part in PARTS)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "saved"
    write_saved(path, ORIGIN, TOKENS, PARTS)
    return path


def test_round_trip(saved: Path) -> None:
    tokens, payload = read_saved(saved, ORIGIN)
    assert tokens == TOKENS
    assert payload.tobytes() == PAYLOAD


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_noticed(saved: Path, data: st.DataObject) -> None:
    whole = bytearray(saved.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    damaged = saved.with_name("damaged")
    damaged.write_bytes(whole)
    with pytest.raises(RequestError, match="damaged"):
        read_saved(damaged, ORIGIN)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_truncation_is_noticed(saved: Path, data: st.DataObject) -> None:
    whole = saved.read_bytes()
    cut = saved.with_name("cut")
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(RequestError):
        read_saved(cut, ORIGIN)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(junk=st.binary(max_size=80))
def test_junk(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "junk"
    path.write_bytes(junk)
    with pytest.raises(RequestError):
        read_saved(path, ORIGIN)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("engine", "gguf", "another engine: onnx, not gguf"),
        ("model", "cd" * 32, "another model: abab"),
        ("layout", "float16, 2 layers", "another KV layout: float32, 2 layers, not float16"),
    ],
)
def test_of_another_origin(saved: Path, field: str, value: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        read_saved(saved, dataclasses.replace(ORIGIN, **{field: value}))


def test_of_another_format_version(saved: Path) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[:6] + struct.pack("<H", 2) + whole[8:])
    with pytest.raises(RequestError, match="format 2; this edgesdk reads 1"):
        read_saved(saved, ORIGIN)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_saved(tmp_path, ORIGIN)


def test_a_write_that_fails_leaves_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(TypeError):
        write_saved(saved, ORIGIN, [object()], PARTS)  # type: ignore[list-item]
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
