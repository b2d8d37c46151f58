"""The cache of compiled graphs, with a compiler that writes what it is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgesdk.engines.npu.compile_cache import (
    LIMIT_VARIABLE,
    CompileCache,
    CompileKey,
    CompileProgress,
    load_compiled,
)
from edgesdk.errors import EngineError, InvalidOption

KEY = CompileKey(model="a" * 64, provider="QNN", versions=("2.7.0",), platform="60")


class FakeCompiler:
    """Implements `edgesdk.engines.npu.compile_cache.Compiler`."""

    def __init__(self, key: CompileKey = KEY, content: bytes = b"graph") -> None:
        self.key = key
        self.content = content
        self.runs = 0

    def write(self, folder: Path, progress: CompileProgress) -> str:
        self.runs += 1
        for done, name in enumerate(("prefill.bin", "decode.bin"), 1):
            (folder / name).write_bytes(self.content)
            progress(done, 2)
        return "v2"


def content_of(folder: Path) -> bytes:
    return (folder / "decode.bin").read_bytes()


def test_a_model_is_compiled_once(tmp_path: Path) -> None:
    compiler, seen = FakeCompiler(), []
    cache = CompileCache(tmp_path / "c")
    for _ in range(2):
        loaded = load_compiled(
            cache, compiler, content_of, progress=lambda done, of: seen.append((done, of))
        )
        assert loaded == b"graph"
    assert compiler.runs == 1
    assert seen == [(1, 2), (2, 2)]
    ((folder, entry),) = cache.entries()
    assert (entry.key, entry.compatibility, entry.size) == (KEY, "v2", 10)
    assert folder == cache.find(KEY)


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "b" * 64},
        {"provider": "OpenVINO"},
        {"versions": ("2.8.0",)},
        {"platform": "57"},
        {"options": ("vtcm_mb=8",)},
        {"shapes": "prefill 128"},
    ],
)
def test_a_compilation_of_another_key_is_not_used(changed, tmp_path: Path) -> None:
    cache = CompileCache(tmp_path)
    cache.store(FakeCompiler())
    assert cache.find(KEY.model_copy(update=changed)) is None


def test_an_entry_under_the_name_of_another_key_is_not_used(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path)
    other = KEY.model_copy(update={"versions": ("2.6.0",)})
    cache.store(FakeCompiler(other)).rename(tmp_path / KEY.id)
    compiler = FakeCompiler(content=b"new")
    assert load_compiled(cache, compiler, content_of) == b"new"


@pytest.mark.parametrize("damage", [b"grapX", b"gra", b"graph and more", None])
def test_a_damaged_file_is_compiled_again(damage, tmp_path: Path) -> None:
    cache, compiler = CompileCache(tmp_path), FakeCompiler()
    path = cache.store(compiler) / "decode.bin"
    path.unlink() if damage is None else path.write_bytes(damage)
    assert load_compiled(cache, compiler, content_of) == b"graph"
    assert compiler.runs == 2


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"format_version": 2}'])
def test_a_damaged_entry_is_compiled_again(damage, tmp_path: Path) -> None:
    cache, compiler = CompileCache(tmp_path), FakeCompiler()
    (cache.store(compiler) / "entry.json").write_bytes(damage)
    assert cache.entries() == []
    assert load_compiled(cache, compiler, content_of) == b"graph"
    assert compiler.runs == 2


def test_what_does_not_load_is_compiled_again_once(tmp_path: Path) -> None:
    cache, compiler = CompileCache(tmp_path), FakeCompiler()
    cache.store(compiler)
    answers = iter([RuntimeError("of another driver"), b"loaded"])

    def load(folder: Path) -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert load_compiled(cache, compiler, load) == b"loaded"
    assert compiler.runs == 2

    def never(folder: Path) -> bytes:
        raise RuntimeError("never")

    with pytest.raises(RuntimeError, match="never"):
        load_compiled(cache, compiler, never)
    assert compiler.runs == 3


def test_what_an_app_ships_is_used_and_not_changed(tmp_path: Path) -> None:
    shipped, cache = CompileCache(tmp_path / "app"), CompileCache(tmp_path / "own")
    folder = shipped.store(FakeCompiler(content=b"shipped"))
    compiler = FakeCompiler(content=b"own")
    assert load_compiled(cache, compiler, content_of, shipped=shipped) == b"shipped"
    assert compiler.runs == 0

    def load(place: Path) -> bytes:
        if place == folder:
            raise RuntimeError("of another driver")
        return content_of(place)

    assert load_compiled(cache, compiler, load, shipped=shipped) == b"own"
    assert shipped.find(KEY) == folder


def test_a_compiler_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Failing(FakeCompiler):
        def write(self, folder: Path, progress: CompileProgress) -> str:
            super().write(folder, progress)
            raise EngineError("two nodes cannot run there")

    cache = CompileCache(tmp_path)
    with pytest.raises(EngineError, match="two nodes"):
        cache.store(Failing())
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    assert cache.find(KEY) is None


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path)
    left = tmp_path / f".{KEY.id}.new"
    left.mkdir()
    (left / "prefill.bin").write_bytes(b"half")
    folder = cache.store(FakeCompiler())
    assert not left.exists()
    assert content_of(folder) == b"graph"
    left.mkdir()
    (left / "prefill.bin").write_bytes(b"half")
    assert cache.clear() > 4
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_the_least_recently_used_goes(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path, max_bytes=25)
    keys = [KEY.model_copy(update={"platform": str(i)}) for i in range(3)]
    for i, key in enumerate(keys[:2]):
        folder = cache.store(FakeCompiler(key))
        os.utime(folder / "entry.json", (i, i))
    assert cache.find(keys[0]) is not None
    cache.store(FakeCompiler(keys[2]))
    assert [cache.find(key) is not None for key in keys] == [True, False, True]
    huge = KEY.model_copy(update={"platform": "huge"})
    cache.store(FakeCompiler(huge, b"x" * 100))
    assert [entry.key for _, entry in cache.entries()] == [huge]


def test_the_limit_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "3")
    assert CompileCache().max_bytes == 3_000_000
    monkeypatch.setenv(LIMIT_VARIABLE, "many")
    with pytest.raises(InvalidOption, match="whole number of megabytes"):
        CompileCache()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(EngineError, match="cannot be kept"):
        CompileCache(tmp_path / "file" / "c").store(FakeCompiler())
