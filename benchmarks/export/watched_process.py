"""Run a child process and watch its memory.

What counts is memory that cannot be given back: anonymous and shared pages (RssAnon + RssShmem in
/proc/PID/status), sampled every 50 ms, of the child and all its descendants together. Pages of
files that are mapped or read (RssFile, the page cache) do not count; VmHWM, which has them in it,
stands beside it: the kernel's own peak, no sampling, the largest of any one process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_INTERVAL = 0.05


@dataclass(frozen=True)
class Watched:
    """What a run took.

    Attributes:
        seconds: of wall clock.
        peak: bytes of anonymous and shared pages, the highest sample.
        peak_resident: bytes of VmHWM, mapped files too.
        samples: how many were taken.
    """

    seconds: float
    peak: int
    peak_resident: int
    samples: int


def watch(command: Sequence[object], environment: dict[str, str]) -> Watched:
    """Run a command to its end; what it prints goes to stderr.

    Raises:
        SystemExit: the command failed.
    """
    if not Path("/proc/self/status").is_file():
        raise SystemExit("Memory is watched through /proc, which this system has not.")
    began = time.perf_counter()
    child = subprocess.Popen(
        [str(part) for part in command], stdout=sys.stderr, env={**os.environ, **environment}
    )
    peak = resident = samples = 0
    try:
        while child.poll() is None:
            statuses = [_status(pid) for pid in _family(child.pid)]
            now = sum(status.get("RssAnon", 0) + status.get("RssShmem", 0) for status in statuses)
            peak = max(peak, now)
            resident = max([resident, *(status.get("VmHWM", 0) for status in statuses)])
            samples += 1
            time.sleep(_INTERVAL)
    finally:
        child.kill()
    if child.returncode:
        raise SystemExit(f"{command[0]} ended with {child.returncode}.")
    return Watched(time.perf_counter() - began, peak, resident, samples)


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found, new = [], [pid]
    while new:
        one = new.pop()
        found.append(one)
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                new += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def _status(pid: int) -> dict[str, int]:
    """The sizes in a process's status, in bytes; none where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines)
    return {key: int(value.split()[0]) * 1024 for key, value in pairs if value.endswith(" kB")}
