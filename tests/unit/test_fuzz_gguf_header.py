"""Damaged GGUF headers before our own three readers of them."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

import pytest
from edgesdk_export.checkpoint.gguf_header import read_gguf_header
from support.fuzzed_ggufs import header_regions, write_small_gguf
from support.fuzzing import chances, damaged, outcome, report

from edgesdk.engines.gguf.header import check_header
from edgesdk.engines.registry import footprint
from edgesdk.errors import EngineError
from edgesdk.system.gguf_header import read_metadata
from edgesdk.system.plan import plan_for

ROUNDS = 120


def _plan(path: Path) -> None:
    found = footprint(path)
    planned = plan_for(found, min(16, found.context_length), available=10**9, bandwidth=1e9)
    assert planned.need.total > 0
    assert planned.kv_bytes_per_1000_tokens >= 0
    assert 0 <= planned.longest_context <= found.context_length


@pytest.mark.parametrize("vocabulary", ["llama", "gpt2"])
def test_damaged_headers(tmp_path: Path, vocabulary: str) -> None:
    path = write_small_gguf(tmp_path / "small.gguf", vocabulary)
    whole = path.read_bytes()
    regions = header_regions(whole)
    for read in (check_header, _plan, read_gguf_header):
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
        stream.write(struct.pack("<Q5sIIQ", 5, b"a.key", 9, kind, count))
        stream.truncate(stream.tell() + count * size)
    for read in (check_header, read_metadata, read_gguf_header):
        assert outcome(lambda read=read: read(path)) != "accepted"  # type: ignore[misc]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
@pytest.mark.parametrize("key", [b"llama.block_count", b"llama.context_length"])
def test_a_count_that_counts_nothing(tmp_path: Path, key: bytes, value: float) -> None:
    path = tmp_path / "odd.gguf"
    architecture = struct.pack("<Q20sIQ5s", 20, b"general.architecture", 8, 5, b"llama")
    entry = struct.pack(f"<Q{len(key)}sId", len(key), key, 12, value)
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + architecture + entry)
    with pytest.raises(EngineError, match=f"'{key.decode()}' is "):
        footprint(path)
