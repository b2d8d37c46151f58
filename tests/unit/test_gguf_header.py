"""GGUF headers: read as the gguf package reads them, and never believed."""

from __future__ import annotations

import contextlib
import struct
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest
from edgesdk_export.checkpoint.gguf_reader import read_gguf_contents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fuzzed_ggufs import header_regions, write_small_gguf
from support.fuzzing import chances, damaged, outcome, report
from support.untrained_gguf import write_untrained_gguf

from edgesdk.engines.gguf.header_checks import check_header, read_header
from edgesdk.engines.registry import footprint
from edgesdk.errors import EngineError
from edgesdk.system.gguf_header import (
    DamagedGguf,
    GgufArray,
    GgufError,
    NotGguf,
    UnsupportedGguf,
    read_gguf_header,
)
from edgesdk.system.plan import plan_for

ROUNDS = 120


def _plan(path: Path) -> None:
    found = footprint(path)
    planned = plan_for(found, min(16, found.context_length), available=10**9, bandwidth=1e9)
    assert planned.need.total > 0
    assert planned.kv_bytes_per_1000_tokens >= 0
    assert 0 <= planned.longest_context <= found.context_length


def _check(path: Path) -> None:
    check_header(read_header(path), path)


def _entry(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack(f"<Q{len(key)}sI", len(key), key, kind) + value


def test_a_header_is_that_of_the_gguf_package(tmp_path: Path) -> None:
    path = write_untrained_gguf(tmp_path / "a.gguf")
    found, reference = read_gguf_header(path), gguf.GGUFReader(path)
    assert (found.file_size, found.alignment) == (path.stat().st_size, reference.alignment)
    assert found.data_start == reference.data_offset
    assert len(found.tensors) == len(reference.tensors)
    for mine, theirs in zip(found.tensors, reference.tensors, strict=True):
        assert (mine.name, mine.type) == (theirs.name, int(theirs.tensor_type))
        assert mine.shape == tuple(map(int, reversed(theirs.shape)))
        assert found.data_start + mine.offset == theirs.data_offset
        assert 0 <= mine.size - int(theirs.n_bytes) < 32
    fields = {k: f for k, f in reference.fields.items() if not k.startswith("GGUF.")}
    assert [*found.metadata] == [*fields]
    for key, field in fields.items():
        value, expected = found.metadata[key], field.contents()
        if not isinstance(value, GgufArray):
            assert value == pytest.approx(expected)
        elif value.is_texts:
            assert [text.decode() for text in value.texts()] == expected
        else:
            np.testing.assert_array_equal(value.numbers(), expected)
        assert not isinstance(value, GgufArray) or value.length == len(expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_header_is_an_error_or_nothing(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "whole.gguf"
    if not path.exists():
        write_untrained_gguf(path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(whole), 4_000) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(GgufError):
        read_gguf_header(bad)


@pytest.mark.parametrize(
    ("tail", "kind", "words"),
    [
        (b"", DamagedGguf, "ends inside the version"),
        (struct.pack("<I", 1), UnsupportedGguf, "version 1"),
        (struct.pack(">I", 3), UnsupportedGguf, "big-endian"),
        (struct.pack("<IQQ", 3, 2**63, 2**63), DamagedGguf, "number of tensors claims"),
        (
            struct.pack("<IQQ", 3, 0, 1) + _entry(b"k", 9, struct.pack("<IQ", 4, 2**62)),
            DamagedGguf,
            "value of 'k' claims",
        ),
        (
            struct.pack("<IQQ", 3, 0, 1) + _entry(b"k", 9, struct.pack("<IQ", 9, 1)),
            DamagedGguf,
            "array of arrays",
        ),
        (
            struct.pack("<IQQ", 3, 0, 1) + _entry(b"k", 9, struct.pack("<IQQ", 8, 2**20, 2**60)),
            DamagedGguf,
            "value of 'k' claims",
        ),
        (struct.pack("<IQQ", 3, 0, 1) + _entry(b"k", 77, b""), DamagedGguf, "unknown type 77"),
        (
            struct.pack("<IQQ", 3, 0, 1) + _entry(b"general.alignment", 4, bytes(4)),
            DamagedGguf,
            "alignment 0",
        ),
        (
            struct.pack("<IQQ", 3, 0, 2) + 2 * _entry(b"k", 0, b"\1"),
            DamagedGguf,
            "'k' occurs twice",
        ),
    ],
)
def test_a_header_that_lies(tmp_path: Path, tail: bytes, kind: type[GgufError], words: str) -> None:
    path = tmp_path / "lies.gguf"
    path.write_bytes(b"GGUF" + tail)
    with pytest.raises(kind, match=words):
        read_gguf_header(path)
    with pytest.raises(EngineError, match="damaged"):
        read_header(path)


@pytest.mark.parametrize("data", [b"", b"GG", b"PK\3\4" + bytes(60)])
def test_another_format(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(data)
    with pytest.raises(NotGguf, match="starts with"):
        read_gguf_header(path)
    with pytest.raises(EngineError, match="is not a GGUF file: it starts with"):
        read_header(path)


@pytest.mark.parametrize("vocabulary", ["llama", "gpt2"])
def test_damaged_headers(tmp_path: Path, vocabulary: str) -> None:
    path = write_small_gguf(tmp_path / "small.gguf", vocabulary)
    whole = path.read_bytes()
    regions = header_regions(whole)
    for read in (_check, _plan, read_gguf_contents):
        seen = Counter([outcome(lambda read=read: read(path))])  # type: ignore[misc]
        for chance in chances(ROUNDS):
            path.write_bytes(damaged(whole, chance, regions))
            seen[outcome(lambda read=read: read(path))] += 1  # type: ignore[misc]
        path.write_bytes(whole)
        report(f"{read.__name__}, {vocabulary}", seen)


@pytest.mark.parametrize(("kind", "size"), [(0, 1), (4, 4), (6, 4), (12, 8), (8, 8)])
def test_an_array_that_claims_all_of_a_large_file(tmp_path: Path, kind: int, size: int) -> None:
    """What it claims is there: the weights. They must not become Python objects."""
    count = 2**23
    path = tmp_path / "large.gguf"
    with path.open("wb") as stream:
        stream.write(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1))
        stream.write(_entry(b"a.key", 9, struct.pack("<IQ", kind, count)))
        stream.truncate(stream.tell() + count * size)
    for read in (read_header, read_gguf_contents):
        assert outcome(lambda read=read: read(path)) != "accepted"  # type: ignore[misc]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
@pytest.mark.parametrize("key", [b"llama.block_count", b"llama.context_length"])
def test_a_count_that_counts_nothing(tmp_path: Path, key: bytes, value: float) -> None:
    path = tmp_path / "odd.gguf"
    architecture = _entry(b"general.architecture", 8, struct.pack("<Q5s", 5, b"llama"))
    entry = _entry(key, 12, struct.pack("<d", value))
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + architecture + entry)
    with pytest.raises(EngineError, match=f"'{key.decode()}' is "):
        footprint(path)
