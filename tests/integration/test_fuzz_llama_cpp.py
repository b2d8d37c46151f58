"""Damaged GGUF headers before llama.cpp itself: loaded or refused, and never an abort."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fuzzed_ggufs import header_regions, write_small_gguf
from support.fuzzing import chances, damaged, report

pytest.importorskip("llama_cpp")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="no limit on a process's memory"),
]

WORKER = Path(__file__).parent.parent / "support" / "gguf_worker.py"
ROUNDS = 150


class Loader:
    """A process that tries files; one that dies is a result like any other."""

    def __init__(self) -> None:
        self._worker = self._start()

    def attempt(self, path: Path) -> tuple[str, str]:
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(f"{path}\n")
        self._worker.stdin.flush()
        line = self._worker.stdout.readline()
        if line:
            kind, text = json.loads(line)
            return kind, text
        assert self._worker.stderr is not None
        said = self._worker.stderr.read()
        status = self._worker.wait()
        self.close()
        self._worker = self._start()
        return "died", f"status {status}: {said[-2000:]}"

    def close(self) -> None:
        self._worker.kill()
        self._worker.communicate()

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
            # ggml would call a debugger when it aborts, and that takes seconds.
            "GGML_NO_BACKTRACE": "1",
        }
        return subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )


@pytest.fixture
def loader() -> Iterator[Loader]:
    loader = Loader()
    yield loader
    loader.close()


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("block_count", "<I", 0),
        ("block_count", "<I", 513),
        ("attention.layer_norm_rms_epsilon", "<f", -1.0),
        ("attention.layer_norm_rms_epsilon", "<f", float("nan")),
    ],
)
def test_numbers_that_llama_cpp_would_abort_over(
    loader: Loader, key: str, kind: str, value: float, tmp_path: Path
) -> None:
    path = write_small_gguf(tmp_path / "odd.gguf", "llama")
    whole = path.read_bytes()
    at = whole.index(f"llama.{key}".encode()) + len(f"llama.{key}") + 4
    path.write_bytes(whole[:at] + struct.pack(kind, value) + whole[at + 4 :])
    assert loader.attempt(path)[0] == "EngineError"


def test_a_vocabulary_without_a_byte(loader: Loader, tmp_path: Path) -> None:
    path = write_small_gguf(tmp_path / "odd.gguf", "llama")
    path.write_bytes(path.read_bytes().replace(b"<0x61>", b"<0x6g>"))
    kind, text = loader.attempt(path)
    assert (kind, "byte 97" in text) == ("EngineError", True)


@pytest.mark.parametrize("vocabulary", ["llama", "gpt2"])
def test_damaged_headers(loader: Loader, vocabulary: str, tmp_path: Path) -> None:
    good = write_small_gguf(tmp_path / "good.gguf", vocabulary)
    assert loader.attempt(good) == ("accepted", "")
    whole = good.read_bytes()
    regions = header_regions(whole)
    seen: Counter[str] = Counter()
    wrong = []
    for number, chance in enumerate(chances(ROUNDS)):
        path = tmp_path / "damaged.gguf"
        path.write_bytes(damaged(whole, chance, regions))
        kind, text = loader.attempt(path)
        seen[kind] += 1
        if kind in ("died", "other"):
            wrong.append(f"round {number}: {text}")
    report(f"llama.cpp, {vocabulary}", seen)
    assert not wrong, "\n".join(wrong)
