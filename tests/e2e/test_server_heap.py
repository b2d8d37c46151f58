"""Freed KV caches go back to the system, instead of staying in the allocator's heaps."""

from __future__ import annotations

import platform

import pytest
from support.other_process import run_python

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's allocator"),
]

# Large and small blocks by turns, as conversations come and go: the small ones stay.
_LIVE = """
import json, sys
import numpy as np, psutil
from edgesdk.server.serving import keep_memory_flat
told = keep_memory_flat() if sys.argv[1] == "told" else None
kept = []
for _ in range(4):
    large = []
    for _ in range(20):
        large.append(np.ones(6 * 2**20, np.uint8))
        kept.append(np.ones(2**16, np.uint8))
    before = psutil.Process().memory_info().rss
    del large
print(json.dumps([told, before - psutil.Process().memory_info().rss]))
"""


def test_large_blocks_go_back() -> None:
    untold, told = (run_python(_LIVE, how) for how in ("untold", "told"))
    assert told[0] is True
    # 120 MiB were freed last.
    assert told[1] > 110 * 2**20
    assert untold[1] < told[1] - 20 * 2**20


_HEAPS = """
import ctypes, json, sys, threading
from edgesdk.server.serving import keep_memory_flat
if sys.argv[1] == "told":
    keep_memory_flat()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
together = threading.Barrier(8)
addresses = []

def work():
    together.wait()
    addresses.append(libc.malloc(1000))
    together.wait()

def heap_of(address):
    # The main heap lies anywhere; the others begin at a multiple of 64 MiB.
    return "main" if first <= address < end else address >> 26

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
lines = open("/proc/self/maps").read().splitlines()
bounds = next(line.split()[0] for line in lines if line.endswith("[heap]"))
first, end = (int(bound, 16) for bound in bounds.split("-"))
print(json.dumps(len(set(map(heap_of, addresses)))))
"""


def test_threads_share_heaps() -> None:
    assert run_python(_HEAPS, "told") <= 2
    assert run_python(_HEAPS, "untold") > 2
