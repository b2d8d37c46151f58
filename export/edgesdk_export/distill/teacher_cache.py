"""Keep a teacher's distributions on disk, so that a teacher reads each sequence once."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from edgesdk.errors import ExportError
from edgesdk_export.distill.divergence import TeacherTokens
from edgesdk_export.distill.teachers import Teacher

_TABLE = (
    "CREATE TABLE IF NOT EXISTS teacher_tokens"
    " (key BLOB PRIMARY KEY, k INTEGER NOT NULL, ids BLOB NOT NULL, log_probs BLOB NOT NULL)"
)


class CachedTeacher:
    """A teacher whose answers are kept in a file, by what it is and by what it read.

    Log-probabilities are stored as float16: their error of at most 0.004 at -8 is far below what
    one training step changes. With `k` tokens a position takes 6 * k bytes.

    Raises:
        ExportError: the file cannot be opened, or is no such cache.
    """

    def __init__(self, teacher: Teacher, path: Path) -> None:
        self._teacher = teacher
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(path, timeout=60)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute(_TABLE)
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    @property
    def identity(self) -> str:
        return self._teacher.identity

    @property
    def vocab_size(self) -> int:
        return self._teacher.vocab_size

    @property
    def most_tokens(self) -> int:
        return self._teacher.most_tokens

    def tokens(self, ids: Sequence[int], k: int) -> TeacherTokens:
        """See `Teacher.tokens`; the teacher is asked only for what it has not read before."""
        k = min(k, self.most_tokens)
        key = self._key(ids, k)
        found = self._read(key, len(ids))
        if found is None:
            # What is stored is what comes back, also the first time: a resumed run sees the same.
            self._write(key, self._teacher.tokens(ids, k))
            found = self._read(key, len(ids))
            assert found is not None
        return found

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _key(self, ids: Sequence[int], k: int) -> bytes:
        digest = hashlib.sha256(f"{self.identity}\0{k}\0".encode())
        digest.update(np.asarray(ids, "<i8").tobytes())
        return digest.digest()

    def _read(self, key: bytes, positions: int) -> TeacherTokens | None:
        try:
            row = self._database.execute(
                "SELECT k, ids, log_probs FROM teacher_tokens WHERE key = ?", (key,)
            ).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from None
        if row is None:
            return None
        shape = (positions, row[0])
        ids = np.frombuffer(row[1], "<i4").reshape(shape).astype(np.int64)
        log_probs = np.frombuffer(row[2], "<f2").reshape(shape).astype(np.float32)
        return TeacherTokens(torch.from_numpy(ids), torch.from_numpy(log_probs), self.vocab_size)

    def _write(self, key: bytes, found: TeacherTokens) -> None:
        ids = found.ids.cpu().numpy().astype("<i4").tobytes()
        log_probs = found.log_probs.cpu().numpy().astype("<f2").tobytes()
        try:
            with self._database:
                self._database.execute(
                    "INSERT OR REPLACE INTO teacher_tokens VALUES (?, ?, ?, ?)",
                    (key, found.ids.shape[-1], ids, log_probs),
                )
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _unusable(self, error: sqlite3.Error) -> ExportError:
        return ExportError(
            f"The teacher's cache {self._path} cannot be used: {error}.",
            hint="Free some space, or name another file; what was computed before it is kept.",
        )
