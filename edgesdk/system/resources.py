"""Measure what this device has: memory, its bandwidth, processor cores."""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil

from edgesdk.errors import InvalidOption

_CGROUP = Path("/sys/fs/cgroup")
# Far past any cache, so that the copies come from memory.
_COPIED_BYTES = 64 * 2**20
_ROUNDS = 5


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """Bytes that a process may still take, by the system and by its container's limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _number(cgroup / limit_file), _number(cgroup / used_file)
        if limit is not None and used is not None:
            # Pages of files count as used, and are given up before the limit is enforced.
            stat = (cgroup / limit_file).parent / "memory.stat"
            free = min(free, max(0, limit - used + _inactive_file_bytes(stat)))
    return free


def private_bytes() -> int:
    """Resident bytes of this process that are not a mapped file's."""
    import psutil

    found = psutil.Process().memory_info()
    return int(found.rss - getattr(found, "shared", 0)) + _shared_memory()[1]


def double_counted_bytes() -> int:
    """Resident bytes that the system counts more than once for this process.

    Linux counts a page once for each place in the address space that it was touched at, and the
    KV cache of an ONNX decoder may have several (see `edgesdk.engines.onnx.kv_cache`).
    """
    resident, proportional = _shared_memory()
    return max(resident - proportional, 0)


def _shared_memory() -> tuple[int, int]:
    """Bytes of shared memory: as they count as resident, and with each page counted once."""
    resident = _field(Path("/proc/self/status"), "RssShmem")
    return (resident, _counted_once(resident)) if resident else (0, 0)


@functools.lru_cache(maxsize=1)
def _counted_once(resident: int) -> int:
    """Bytes of the shared memory that counts as `resident`, with each page counted once.

    Remembered while `resident` stays as it is: the kernel walks all pages of the process for it,
    which takes 18 ms where 1.3 GB are resident, and each receipt asks.
    """
    return _field(Path("/proc/self/smaps_rollup"), "Pss_Shmem")


def _field(path: Path, name: str) -> int:
    """Read one size of a file in /proc, in bytes; 0 where it has none."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    sizes = [line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:")]
    return int(sizes[0]) * 1024 if sizes else 0


@functools.lru_cache(maxsize=4)
def bandwidth(threads: int) -> float:
    """Bytes per second that `threads` threads read and write together; measured once, in 0.2 s.

    The best of some rounds of copies between arrays of 64 MiB, after a first one that has the
    pages put in place. A copy reads and writes each byte, so it counts twice.
    """
    size = _COPIED_BYTES // threads
    pairs = [(np.ones(size, np.uint8), np.empty(size, np.uint8)) for _ in range(threads)]

    def copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
        np.copyto(pair[1], pair[0])

    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(1 + _ROUNDS):
            begun = perf_counter()
            list(pool.map(copy, pairs))
            best = min(best, perf_counter() - begun)
    return 2 * size * threads / best


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _inactive_file_bytes(stat: Path) -> int:
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0


def thread_count(requested: int | None) -> int:
    """The number that was asked for, or one thread per physical core that may be used.

    Hyperthreads share the vector units that decoding keeps busy, so they are not counted.

    Raises:
        InvalidOption: `requested` is less than 1.
    """
    if requested is not None:
        if requested < 1:
            raise InvalidOption(f"threads must be at least 1, not {requested}.")
        return requested
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, usable or 1))


def cpu_info() -> dict[str, str]:
    """Return the first processor's fields of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
