"""A file is there whole or not at all, and nothing else is left."""

from __future__ import annotations

import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.other_process import run_killed_python

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


def stop_o_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)


needs_posix = pytest.mark.skipif(os.name != "posix", reason="Windows has other kinds of files")


@needs_posix
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "socket"])
def test_what_is_no_file_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, linked: bool, named: bool
) -> None:
    if named:
        stop_o_tmpfile(monkeypatch)
    place = tmp_path / kind
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place = Path("/dev/null")
    else:
        monkeypatch.chdir(tmp_path)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind("socket")
        listening.close()
    before = place.stat()
    path = tmp_path / "link" if linked else place
    if linked:
        path.symlink_to(place)
    there = names(tmp_path)
    with pytest.raises(OSError, match=r"it is a (folder|device or a pipe)"):
        write_atomically(path, b"data", private=True)
    assert os.path.samestat(before, place.stat())
    assert names(tmp_path) == there


@needs_posix
def test_a_link_to_a_file_is_replaced_and_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "old")
    write_atomically(path, b"new")
    assert (path.read_bytes(), path.is_symlink()) == (b"new", False)
    assert (tmp_path / "old").read_bytes() == b"old"


KILLED = """
import os, signal, sys
from pathlib import Path
from edgesdk.system.atomic_files import atomic_file
if sys.argv[2] == "named":
    del os.O_TMPFILE
with atomic_file(Path(sys.argv[1]), private=True) as stream:
    stream.write(bytes(2**20))
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="files without a name are Linux's")
def test_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chat"
    path.write_bytes(b"old")
    run_killed_python(KILLED, str(path), "unnamed")
    assert names(tmp_path) == ["chat"]
    assert path.read_bytes() == b"old"


@needs_posix
@pytest.mark.parametrize("named", [False, True])
def test_what_a_killed_writer_leaves_goes_with_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    path = tmp_path / "chat[1]"
    run_killed_python(KILLED, str(path), "named")
    (left,) = tmp_path.iterdir()
    assert stat.S_IMODE(left.stat().st_mode) == 0o600
    # Those of other files stay, and what only looks alike.
    others = [".chat[2].0a1b2c3d", ".chat1.0a1b2c3d", ".chat[1].0a1b2c3d.txt"]
    for name in others:
        (tmp_path / name).touch()
    if named:
        stop_o_tmpfile(monkeypatch)
    write_atomically(path, b"new")
    assert names(tmp_path) == sorted([*others, "chat[1]"])


@needs_posix
@pytest.mark.parametrize("named", [False, True])
def test_a_writer_that_lives_keeps_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    path = tmp_path / "file"
    with monkeypatch.context() as patched:
        stop_o_tmpfile(patched)
        with atomic_file(path) as slow:
            slow.write(b"slow")
            if not named:
                patched.undo()
            write_atomically(path, b"quick")
            assert path.read_bytes() == b"quick"
    assert path.read_bytes() == b"slow"
    assert names(tmp_path) == ["file"]


@needs_posix
def test_writers_without_unnamed_files_never_take_each_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_o_tmpfile(monkeypatch)
    path = tmp_path / "file"
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda n: write_atomically(path, bytes([n]) * 9), range(200)))
    assert len(set(path.read_bytes())) == 1
    assert names(tmp_path) == ["file"]
