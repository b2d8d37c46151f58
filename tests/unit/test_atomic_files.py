"""A file is there whole or not at all, and nothing else is left."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from edgesdk.system.atomic_files import atomic_file, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", [b"bytes\r\n", "text\u00e9\n", b""])
def test_a_file_is_written_or_replaced(tmp_path: Path, data: bytes | str) -> None:
    path = tmp_path / "file"
    for _ in range(2):
        write_atomically(path, data)
        assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"

    def fail() -> None:
        with atomic_file(path) as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == []
    path.write_bytes(b"old")
    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_nothing_is_seen_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_file(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_atomically(tmp_path / "missing" / "file", b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").touch()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", b"")
    assert names(tmp_path) == ["folder"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_private_file_is_for_its_user_only(tmp_path: Path) -> None:
    write_atomically(tmp_path / "private", b"", private=True)
    write_atomically(tmp_path / "shared", b"")
    (tmp_path / "plain").touch()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes["private"] == 0o600
    assert modes["shared"] == modes["plain"]


def test_two_writers_at_once_have_files_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path) as one, atomic_file(path) as two:
        one.write(b"one")
        two.write(b"two")
    # The blocks end from the inside out.
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["file"]
