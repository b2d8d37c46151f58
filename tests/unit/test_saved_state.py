from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgesdk.engines.saved_state import KvIdentity, read_saved_state, write_saved_state
from edgesdk.errors import RequestError

ORIGIN = KvIdentity(engine="onnx", model="ab" * 32, layout="float32, 2 layers")
TOKENS = [5, 0, 151_935]
PARTS = [np.arange(12, dtype=np.float32).reshape(3, 4)[:, :2], np.ones(3, np.float16)]
NOTE = {"system": "Grüß Gott \u2028", "turns": [{"role": "user", "n": [1, 2.5, None]}]}
PAYLOAD = b"".join(part.tobytes() for part in PARTS)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "saved"
    write_saved_state(path, ORIGIN, TOKENS, PARTS, NOTE)
    return path


def test_round_trip(saved: Path) -> None:
    tokens, metadata, payload = read_saved_state(saved, ORIGIN)
    assert tokens == TOKENS
    assert metadata == NOTE
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
        read_saved_state(damaged, ORIGIN)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_truncation_is_noticed(saved: Path, data: st.DataObject) -> None:
    whole = saved.read_bytes()
    cut = saved.with_name("cut")
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(RequestError):
        read_saved_state(cut, ORIGIN)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(junk=st.binary(max_size=80))
def test_junk(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "junk"
    path.write_bytes(junk)
    with pytest.raises(RequestError):
        read_saved_state(path, ORIGIN)


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
        read_saved_state(saved, dataclasses.replace(ORIGIN, **{field: value}))


def test_of_another_format_version(saved: Path) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[:6] + struct.pack("<H", 2) + whole[8:])
    with pytest.raises(RequestError, match="format 2; this edgesdk reads 1"):
        read_saved_state(saved, ORIGIN)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_saved_state(tmp_path, ORIGIN)


def test_a_write_that_fails_leaves_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(ValidationError):
        write_saved_state(saved, ORIGIN, [object()], PARTS)  # type: ignore[list-item]
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    field=st.sampled_from(["engine", "tokens", "metadata", "payload_bytes", "more"]),
    value=st.none() | st.integers() | st.text() | st.lists(st.integers(-9, 2**70)) | st.floats(),
)
def test_a_header_that_somebody_wrote(tmp_path: Path, field: str, value: object) -> None:
    fields = {
        "engine": ORIGIN.engine,
        "model": ORIGIN.model,
        "layout": ORIGIN.layout,
        "tokens": TOKENS,
        "metadata": {},
        "payload_bytes": 0,
    } | {field: value}
    header = json.dumps(fields).encode()
    crc = struct.pack("<I", zlib.crc32(header))
    path = tmp_path / "written"
    path.write_bytes(b"EDGEKV" + struct.pack("<HI", 1, len(header)) + header + crc + bytes(4))
    try:
        saved = read_saved_state(path, ORIGIN)
    except RequestError:
        return
    assert all(0 <= token < 2**31 for token in saved.tokens)
