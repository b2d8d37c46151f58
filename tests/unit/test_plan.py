"""Plans from made-up footprints, and the footprint of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.untrained_gguf import write_untrained_gguf

from edgesdk.engines.gguf.footprint import GgufFootprint, footprint
from edgesdk.engines.onnx.footprint import OnnxFootprint
from edgesdk.errors import NotEnoughMemory
from edgesdk.system.plan import MemoryNeed, check_fits, longest_context, plan_for
from edgesdk.system.resources import available_bytes, bandwidth


@dataclass(frozen=True)
class Linear:
    """1,000 bytes, and 10 for each token; the process has 300 before."""

    context_length: int = 500
    kv_bytes_per_token: int = 10
    read_bytes_per_token: int = 800

    def need(self, context: int) -> MemoryNeed:
        return MemoryNeed(300, 100, 850, 10 * context, 50)


def test_a_plan_adds_up() -> None:
    found = plan_for(Linear(), 200, available=3_000, bandwidth=56_000.0)
    assert found.need.total == 3_300
    assert found.fits
    assert found.longest_context == 200
    assert found.kv_bytes_per_1000_tokens == 10_000
    assert found.tokens_per_second == pytest.approx(70)
    assert found.tokens_per_second_full == pytest.approx(20)


@given(st.integers(0, 8_000))
def test_the_longest_context_is_the_last_that_fits(available: int) -> None:
    longest = longest_context(Linear(), available)
    assert longest == max(0, min(500, (available - 1_000) // 10))


def test_what_cannot_fit_is_refused_with_figures() -> None:
    check_fits(Linear(), 100, available=2_000)
    with pytest.raises(NotEnoughMemory, match="context=99 or less") as caught:
        check_fits(Linear(), 100, available=1_999)
    assert (caught.value.needed, caught.value.available) == (2_000, 1_999)
    assert isinstance(caught.value, MemoryError)
    with pytest.raises(NotEnoughMemory, match="smaller model"):
        check_fits(Linear(), 1, available=500)


_ONNX = OnnxFootprint(8192, 46_080, 10**8, 0, heads=9, hidden_size=576, vocab_size=49_152)
_GGUF = GgufFootprint(8192, 23_040, 10**8, 0, 0, 576, 1536, 49_152)


@pytest.mark.parametrize("found", [_ONNX, _GGUF])
@given(context=st.integers(1, 8191))
def test_more_context_never_needs_less(found: OnnxFootprint | GgufFootprint, context: int) -> None:
    assert found.need(context).total <= found.need(context + 1).total
    assert min(vars(found.need(context)).values()) >= 0


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) > 0
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    assert available_bytes(tmp_path) == 100_000
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 300000\n")
    assert available_bytes(tmp_path) == 400_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) > 400_000


def test_an_older_containers_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("1000000\n")
    (tmp_path / "memory/memory.usage_in_bytes").write_text("1500000\n")
    assert available_bytes(tmp_path) == 0


def test_bandwidth_is_of_memory() -> None:
    # Slower than any device with this much memory, faster than any there is.
    assert 1e8 < bandwidth(1) < 1e13


@pytest.mark.parametrize("packs", [True, False])
def test_a_footprint_of_a_gguf(tmp_path: Path, monkeypatch, packs: bool) -> None:
    library = SimpleNamespace(extra_buffers=packs)
    monkeypatch.setattr("edgesdk.engines.gguf.footprint.load_library", lambda: library)
    path = write_untrained_gguf(tmp_path / "a.gguf")
    found = footprint(path)
    matrix = 16 * 64 // 32 * 18
    assert found == GgufFootprint(
        context_length=512,
        kv_bytes_per_token=2 * 2 * 2 * (16 + 16),
        file_bytes=path.stat().st_size,
        packed_bytes=2 * matrix if packs else 0,
        embedding_bytes=matrix,
        hidden_size=64,
        intermediate_size=96,
        vocab_size=3,
    )
