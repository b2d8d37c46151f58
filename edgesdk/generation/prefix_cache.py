"""Keeps KV caches of prompt beginnings on disk: a system message or a document is computed once.

FOLDER/ORIGIN/TOKENS-HASH.kv   a saved decode state, see `edgesdk.engines.saved`
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
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgesdk.engines.base import DecodeState
from edgesdk.engines.saved_state import KvIdentity
from edgesdk.errors import ContextOverflow, EngineError, RequestError
from edgesdk.generation.prefill import common_prefix

DEFAULT_MAX_BYTES = 2 * 2**30
# Below this, prefill is quick enough that a file is not worth its space.
DEFAULT_MIN_TOKENS = 256
# A file beside its place that is older than this was left by a process that died.
_STALE_SECONDS = 3600.0
# Making room takes milliseconds; a process that holds the lock for longer is stuck.
_PATIENCE_SECONDS = 5.0


class PrefixCache:
    """Beginnings of prompts in one folder; the least recently used go when there are too many.

    Args:
        folder: made when something is first stored.
        max_bytes: the most that all files together may take.
        min_tokens: tokens that a beginning must have, or add to what a state holds already.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        min_tokens: int = DEFAULT_MIN_TOKENS,
    ) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.min_tokens = min_tokens

    def restore(self, state: DecodeState, kv_identity: KvIdentity, prompt: Sequence[int]) -> None:
        """Fill `state` with the longest stored beginning of `prompt`, where that saves enough.

        Where it does not, the state stays as it is.
        """
        worth = common_prefix(state.tokens, prompt) + self.min_tokens
        for length in sorted(self._lengths(kv_identity), reverse=True):
            if length < worth:
                return
            path = self._path(kv_identity, prompt[:length])
            if length <= len(prompt) and path.is_file() and _fill(state, path, prompt[:length]):
                return

    def store(self, state: DecodeState, kv_identity: KvIdentity, length: int) -> bool:
        """Store the first `length` tokens of `state`; False where they are too few.

        Raises:
            OSError: the folder cannot be written.
            EngineError: the state cannot be forked.
        """
        tokens = state.tokens[:length]
        if len(tokens) < self.min_tokens:
            return False
        path = self._path(kv_identity, tokens)
        if path.is_file():
            _touch(path)
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        branch = state.fork()
        try:
            branch.rewind(len(tokens))
            branch.save(path)
        finally:
            branch.close()
        self._make_room()
        return path.is_file()

    def _path(self, kv_identity: KvIdentity, tokens: Sequence[int]) -> Path:
        digest = hashlib.sha256(np.asarray(tokens, "<i8").tobytes()).hexdigest()
        return self._folder_of(kv_identity) / f"{len(tokens)}-{digest}.kv"

    def _folder_of(self, kv_identity: KvIdentity) -> Path:
        text = "\n".join((kv_identity.engine, kv_identity.model, kv_identity.layout))
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:32]

    def _lengths(self, kv_identity: KvIdentity) -> set[int]:
        try:
            names = [path.name for path in self._folder_of(kv_identity).glob("*.kv")]
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
            if total <= self.max_bytes:
                return
            # Windows does not remove a file that another process reads.
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size


def _fill(state: DecodeState, path: Path, tokens: Sequence[int]) -> bool:
    try:
        state.restore(path)
    except (ContextOverflow, EngineError):
        return False
    except RequestError:
        _remove(path)
        return False
    if state.tokens != tuple(tokens):
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
