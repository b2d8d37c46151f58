"""Compare two contestants in turns: each is a process that stays alive and runs when told to.

A worker prints "ready", then for every line it reads runs once and prints its tokens per second.
While one runs the other sleeps, so both meet the same weather; a pair's ratio is what counts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SETTLE_RUNS = 1


def serve(run: Callable[[], float]) -> None:
    """A worker's main loop. `run` returns tokens per second."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        sys.stdout.write(f"{run()}\n")
        sys.stdout.flush()


class Contestant:
    """A worker process."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._expect()

    def run(self) -> float:
        """Tokens per second of one run."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._expect())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _expect(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"{self.name} stopped with code {self._process.wait()}")
        return line


def interleave(
    ours: Callable[[], float], peer: Callable[[], float], pairs: int
) -> list[tuple[float, float]]:
    """(our, peer's) tokens per second of each pair; who goes first alternates."""
    for _ in range(SETTLE_RUNS):
        ours()
        peer()
    results = []
    for index in range(pairs):
        if index % 2 == 0:
            mine = ours()
            theirs = peer()
        else:
            theirs = peer()
            mine = ours()
        results.append((mine, theirs))
    return results


def report(
    title: str, ours: str, peer: str, pairs: list[tuple[float, float]], **facts: object
) -> None:
    """A small table and one line of JSON."""
    ratios = [mine / theirs for mine, theirs in pairs]
    print(f"{title} (tokens/s)\n")
    print(f"{'pair':>6} {ours:>18} {peer:>22} {'ratio':>8}")
    for index, ((mine, theirs), ratio) in enumerate(zip(pairs, ratios, strict=True), start=1):
        print(f"{index:>6} {mine:>18.1f} {theirs:>22.1f} {ratio:>8.3f}")
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    print(
        f"{'median':>6} {medians[0]:>18.1f} {medians[1]:>22.1f} {statistics.median(ratios):>8.3f}"
    )
    print()
    print(
        json.dumps(
            {
                "benchmark": title,
                "median_ratio": round(statistics.median(ratios), 4),
                "ratios": [round(ratio, 4) for ratio in ratios],
                ours: round(medians[0], 1),
                peer: round(medians[1], 1),
                **facts,
            }
        )
    )


def worker_command(name: str, *arguments: object, python: Path | None = None) -> list[str]:
    """The command that runs a worker of `benchmarks.speed.workers`."""
    module = "benchmarks.speed.workers"
    return [str(python or sys.executable), "-m", module, name, *map(str, arguments)]
