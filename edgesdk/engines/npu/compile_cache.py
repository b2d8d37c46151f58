"""Keeps what providers compiled of a bundle's graphs, so that a device compiles a model once.

FOLDER/ID/               one compilation; ID stands for its key
FOLDER/ID/entry.json     the key, and each file with its size and checksum
FOLDER/.ID.lock          held by the process that compiles it
FOLDER/.ID.new           what that process has written so far

The cache knows nothing of providers: they write files into a folder, and load them from there. A
compilation that does not load is compiled again, whatever the reason. Any number of processes may
share a folder: compilations appear and go as a whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from edgesdk.errors import EngineError, InvalidOption
from edgesdk.system.atomic_files import flush_file, flush_folder
from edgesdk.system.home import default_root

_LOG = logging.getLogger("edgesdk.engines.compile_cache")

DEFAULT_MAX_BYTES = 8 * 2**30
LIMIT_VARIABLE = "EDGESDK_COMPILE_CACHE_MB"
_ENTRY = "entry.json"
_NEW, _LOCK = ".new", ".lock"
_ID_CHARACTERS = 32
_CHUNK = 4 * 2**20
# A disk with less is full: compilers say so in words of their own.
_FULL_BELOW = 2**20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_Loaded = TypeVar("_Loaded")
# Called with how many of how many graphs are compiled.
CompileProgress = Callable[[int, int], None]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class CompileKey(_Stored):
    """What a compilation belongs to. It is used only where all of it is equal.

    Attributes:
        model: the bundle's hash.
        provider: what compiled it, as its record names it.
        versions: of the provider, and of what it was built with.
        platform: the processor that it is for, as the provider names it.
        options: those of the provider that change what is compiled, "name=value", sorted.
        shapes: the sizes of the graphs, in words.
    """

    model: str
    provider: str
    versions: tuple[str, ...]
    platform: str
    options: tuple[str, ...] = ()
    shapes: str = ""

    @property
    def id(self) -> str:
        """A name for it that a file system takes."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:_ID_CHARACTERS]


class CompiledFile(_Stored):
    """One file of a compilation; the checksum is there for damage by accident."""

    name: str
    size: int
    crc32: int


class Compilation(_Stored):
    """What `entry.json` says.

    Attributes:
        compatibility: what the provider itself says that the files can be used with; "" where it
            says nothing.
    """

    format_version: int = 1
    key: CompileKey
    compatibility: str
    files: tuple[CompiledFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)


class Compiler(Protocol):
    """Compiles the graphs of a bundle for one platform."""

    @property
    def key(self) -> CompileKey:
        """What the result belongs to."""

    def write(self, folder: Path, progress: CompileProgress) -> str:
        """Compile into files in `folder`; returns what `Compilation.compatibility` is.

        Raises:
            EngineError: a graph cannot be compiled as a whole.
        """


class CompileCache:
    """Compilations in one folder; the least recently used go when there are too many.

    Args:
        folder: made when something is first stored; None for the one beside the store.
        max_bytes: the most that all files together may take; None for EDGESDK_COMPILE_CACHE_MB,
            else 8 GiB. The compilation that was stored last stays, however large it is.

    Raises:
        InvalidOption: EDGESDK_COMPILE_CACHE_MB is no number.
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int | None = None) -> None:
        self.folder = default_root() / "compiled" if folder is None else folder
        self.max_bytes = _limit() if max_bytes is None else max_bytes

    def find(self, key: CompileKey) -> Path | None:
        """The folder of a whole and undamaged compilation; None where there is none."""
        folder = self.folder / key.id
        entry = _read(folder)
        if entry is None or entry.key != key or not _is_whole(folder, entry):
            return None
        # Used now: the order in which compilations go is that of these times.
        with contextlib.suppress(OSError):
            os.utime(folder / _ENTRY)
        return folder

    def store(self, compiler: Compiler, progress: CompileProgress = lambda done, of: None) -> Path:
        """Compile, unless another process has done so meanwhile; returns the folder.

        Raises:
            EngineError: the model cannot be compiled, or the disk is full or cannot be written.
                Nothing is left behind.
        """
        key = compiler.key
        place = self.folder / key.id
        with self._locked(key.id):
            found = self.find(key)
            if found is not None:
                return found
            beside = self.folder / f".{key.id}{_NEW}"
            with self._explained(beside):
                _remove(beside)
                beside.mkdir()
                compatibility = compiler.write(beside, progress)
                _seal(beside, key, compatibility)
                _remove(place)
                beside.replace(place)
                flush_folder(self.folder)
            self._make_room(keep=key.id)
        return place

    def remove(self, key: CompileKey) -> None:
        """Forget a compilation; harmless where there is none."""
        _remove(self.folder / key.id)

    def entries(self) -> list[tuple[Path, Compilation]]:
        """The compilations, the latest used first. Those that cannot be read are left out."""
        found: list[tuple[float, Path, Compilation]] = []
        for folder in self._folders():
            entry = _read(folder)
            if entry is not None:
                with contextlib.suppress(OSError):
                    found.append(((folder / _ENTRY).stat().st_mtime, folder, entry))
        return [(folder, entry) for _, folder, entry in sorted(found, key=lambda each: -each[0])]

    def clear(self) -> int:
        """Remove all, also what a process that was killed left; returns how many bytes went."""
        freed = 0
        for folder in self._folders():
            freed += _bytes_in(folder)
            _remove(folder)
        return freed + self.remove_unfinished()

    def remove_unfinished(self) -> int:
        """Remove what processes that were killed left; returns how many bytes went."""
        from filelock import FileLock, Timeout

        freed = 0
        for unfinished in self.folder.glob(f".*{_NEW}"):
            name = unfinished.name.removeprefix(".").removesuffix(_NEW)
            # Who still compiles goes on.
            with (
                contextlib.suppress(Timeout),
                FileLock(self.folder / f".{name}{_LOCK}", timeout=0),
            ):
                freed += _bytes_in(unfinished)
                _remove(unfinished)
        return freed

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if (path / _ENTRY).is_file()]

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        from filelock import FileLock

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / f".{name}{_LOCK}")
            lock.acquire()
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _explained(self, beside: Path) -> Iterator[None]:
        """Remove what was written where the block fails, and say why it did."""
        try:
            yield
        except BaseException as error:
            # Asked before anything is removed.
            full = isinstance(error, Exception) and _is_full(self.folder, error)
            _remove(beside)
            if full:
                raise EngineError(
                    f"The disk that holds {self.folder} is full, so the model was not compiled.",
                    hint="Free some space, or set EDGESDK_HOME to a folder on another disk.",
                ) from error
            if isinstance(error, OSError):
                raise _unwritable(self.folder, error) from error
            raise

    def _make_room(self, *, keep: str) -> None:
        total = sum(entry.size for _, entry in self.entries())
        for folder, entry in reversed(self.entries()):
            if total <= self.max_bytes:
                return
            if folder.name != keep:
                _remove(folder)
                total -= entry.size


def load_compiled(
    cache: CompileCache,
    compiler: Compiler,
    load: Callable[[Path], _Loaded],
    *,
    shipped: CompileCache | None = None,
    progress: CompileProgress = lambda done, of: None,
) -> _Loaded:
    """What `load` makes of a compilation: one that is there, else one that is made now.

    A compilation that does not load, for whatever reason, is compiled again, once.

    Args:
        shipped: is looked at first, and never changed.
        load: opens the files in a folder.

    Raises:
        EngineError: the model cannot be compiled, or the disk is full.
        Exception: what `load` raises of files that were compiled just now.
    """
    key = compiler.key
    for place in (shipped, cache):
        found = None if place is None else place.find(key)
        if found is None:
            continue
        try:
            return load(found)
        # The exceptions of native libraries have no common base.
        except Exception as error:
            _LOG.warning("%s does not load, and is compiled again: %s", found, error)
            if place is cache:
                cache.remove(key)
    return load(cache.store(compiler, progress))


def _limit() -> int:
    given = os.environ.get(LIMIT_VARIABLE)
    if not given:
        return DEFAULT_MAX_BYTES
    if not given.isdecimal():
        raise InvalidOption(f"{LIMIT_VARIABLE} must be a whole number of megabytes, not {given!r}.")
    return int(given) * 10**6


def _seal(folder: Path, key: CompileKey, compatibility: str) -> None:
    """Write `entry.json`, the last file, and have all of them on the disk."""
    files = []
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        flush_file(path)
        name = path.relative_to(folder).as_posix()
        files.append(CompiledFile(name=name, size=path.stat().st_size, crc32=_checksum(path)))
    entry = Compilation(key=key, compatibility=compatibility, files=tuple(files))
    path = folder / _ENTRY
    path.write_text(json.dumps(entry.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    flush_file(path)
    flush_folder(folder)


def _read(folder: Path) -> Compilation | None:
    try:
        return Compilation.model_validate_json((folder / _ENTRY).read_bytes())
    except (OSError, ValidationError):
        return None


def _is_whole(folder: Path, entry: Compilation) -> bool:
    """Whether each file is as it was written: native code trusts what it reads."""
    try:
        return all(
            (folder / file.name).stat().st_size == file.size
            and _checksum(folder / file.name) == file.crc32
            for file in entry.files
        )
    except OSError:
        return False


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _is_full(folder: Path, error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return shutil.disk_usage(folder).free < _FULL_BELOW


def _unwritable(folder: Path, error: OSError) -> EngineError:
    return EngineError(
        f"Compiled models cannot be kept in {folder}: {error.strerror}.",
        hint="Set EDGESDK_HOME to a folder that you may write to.",
    )


def _bytes_in(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _remove(folder: Path) -> None:
    """Remove a folder so that nobody finds a part of it; what is in use elsewhere may stay."""
    with contextlib.suppress(OSError):
        (folder / _ENTRY).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
