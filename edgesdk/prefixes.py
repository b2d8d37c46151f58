"""KV caches of prompt beginnings, kept on disk: a system message or a document is read once.

FOLDER/ORIGIN/TOKENS-HASH.kv   a saved sequence, see `edgesdk.engines.saved`
FOLDER/.lock                   held by the process that makes room

ORIGIN stands for model, engine and KV layout, HASH for the token ids. A hit counts only if the
ids in the file are those of the prompt. Any number of processes may share a folder: files appear
and go as a whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence as Items
from pathlib import Path

import numpy as np

from edgesdk.engines.base import Sequence
from edgesdk.engines.saved import KvOrigin
from edgesdk.errors import ContextOverflow, EngineError, RequestError

DEFAULT_LIMIT_BYTES = 2 * 2**30
# Below this, prefill is quick enough that a file is not worth its space.
DEFAULT_AT_LEAST = 256
# A file beside its place that is older than this was left by a process that died.
_STALE_SECONDS = 3600.0
# Making room takes milliseconds; a process that holds the lock for longer is stuck.
_PATIENCE_SECONDS = 5.0


class PrefixCache:
    """Kept beginnings in one folder; the least recently used go when there are too many.

    Args:
        folder: made when something is first kept.
        limit_bytes: the most that all files together may take.
        at_least: tokens that a beginning must have, or add to what a sequence holds already.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        at_least: int = DEFAULT_AT_LEAST,
    ) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.at_least = at_least

    def restore(self, sequence: Sequence, origin: KvOrigin, prompt: Items[int]) -> None:
        """Fill `sequence` with the longest kept beginning of `prompt`, where that saves enough.

        Where it does not, the sequence stays as it is.
        """
        worth = _common(sequence.tokens, prompt) + self.at_least
        for length in sorted(self._lengths(origin), reverse=True):
            if length < worth:
                return
            path = self._place(origin, prompt[:length])
            if length <= len(prompt) and path.is_file() and _fill(sequence, path, prompt[:length]):
                return

    def keep(self, sequence: Sequence, origin: KvOrigin, length: int) -> bool:
        """Keep the first `length` tokens of `sequence`; False where they are too few to keep.

        Raises:
            OSError: the folder cannot be written.
            EngineError: the sequence cannot be forked.
        """
        tokens = sequence.tokens[:length]
        if len(tokens) < self.at_least:
            return False
        path = self._place(origin, tokens)
        if path.is_file():
            _touch(path)
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        branch = sequence.fork()
        try:
            branch.rewind(len(tokens))
            branch.save(path)
        finally:
            branch.close()
        self._make_room()
        return path.is_file()

    def _place(self, origin: KvOrigin, tokens: Items[int]) -> Path:
        digest = hashlib.sha256(np.asarray(tokens, "<i8").tobytes()).hexdigest()
        return self._home(origin) / f"{len(tokens)}-{digest}.kv"

    def _home(self, origin: KvOrigin) -> Path:
        text = "\n".join((origin.engine, origin.model, origin.layout))
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:32]

    def _lengths(self, origin: KvOrigin) -> set[int]:
        try:
            names = [path.name for path in self._home(origin).glob("*.kv")]
        except OSError:
            return set()
        starts = (name.partition("-")[0] for name in names)
        return {int(start) for start in starts if start.isdecimal() and len(start) < 10}

    def _make_room(self) -> None:
        from filelock import FileLock, Timeout

        try:
            # Waiting matters: the process that holds it may have counted before this file came.
            with FileLock(self.folder / ".lock", timeout=_PATIENCE_SECONDS):
                self._evict()
        except Timeout:
            return

    def _evict(self) -> None:
        files: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):
                found = path.stat()
                if path.suffix == ".kv":
                    files.append((found.st_mtime, found.st_size, path))
                elif found.st_mtime < time.time() - _STALE_SECONDS:
                    path.unlink()
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit_bytes:
                return
            # Windows does not remove a file that another process reads.
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size


def _fill(sequence: Sequence, path: Path, tokens: Items[int]) -> bool:
    try:
        sequence.restore(path)
    except (ContextOverflow, EngineError):
        return False
    except RequestError:
        _remove(path)
        return False
    if sequence.tokens != tuple(tokens):
        # The file is not what its name says. The decode loop rewinds what does not agree.
        _remove(path)
        return False
    _touch(path)
    return True


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _common(held: Items[int], wanted: Items[int]) -> int:
    count = 0
    for mine, theirs in zip(held, wanted, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
