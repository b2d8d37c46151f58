from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest

from edgesdk.engines.onnx.kv_cache import CacheShape, KvCache, aliased_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such memory")

PAGE = mmap.PAGESIZE


def test_all_copies_of_a_block_are_one_memory() -> None:
    memory = aliased_memory(3, 2 * PAGE, 4)
    assert memory.shape == (3, 4, 2 * PAGE)
    assert not memory.any()

    memory[1, 2, 5] = 7
    memory[1, 0, PAGE] = 8

    expected = np.zeros((3, 2 * PAGE), np.uint8)
    expected[1, [5, PAGE]] = 7, 8
    for copy in range(4):
        np.testing.assert_array_equal(memory[:, copy], expected)


def test_a_part_keeps_the_memory_alive() -> None:
    part = aliased_memory(2, PAGE, 3)[1, 2]
    others = [aliased_memory(2, PAGE, 3) for _ in range(4)]
    part[:] = 9
    assert (part == 9).all()
    assert not any(other.any() for other in others)


def test_blocks_of_half_pages_are_refused() -> None:
    with pytest.raises(OSError, match=r"\[Errno"):
        aliased_memory(2, PAGE // 2, 2)


def test_a_cache_keeps_its_tokens_when_it_is_spread_and_when_it_grows() -> None:
    cache = KvCache(CacheShape(layers=2, kv_heads=3, head_size=8))
    cache.reserve(5, used=0, limit=1001)
    numbers = np.arange(cache.shape.elements(5), dtype=np.float32)
    cache.load(numbers, 5)

    cache.alias(4, used=5)
    # One token takes 96 bytes, so whole pages hold other numbers of tokens than were asked for.
    assert cache.capacity >= 256
    before = cache.buffers
    cache.reserve(1000, used=5, limit=1001)

    assert cache.buffers is not before
    assert cache.capacity >= 1000
    np.testing.assert_array_equal(np.concatenate([part.ravel() for part in cache.dump(5)]), numbers)
    for keys, values in cache.views:
        assert keys.shape == values.shape == (4, 3, cache.capacity, 8)
        keys[3, 2, 900] = 1
        assert keys[0, 2, 900].all()
    twin = cache.copy(5)
    twin.buffers[0][0][0, 0, 0] = -1
    assert cache.buffers[0][0][0, 0, 0, 0] == 0
