"""Downloads over a real socket: kills, cuts, changed files, wrong hashes, two processes."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from range_server import RangeServer, Served
from support.pulls import BODY, SHA256, partial_size, start_pull, wait_until
from support.small_disk import small_disk

from edgesdk.errors import DownloadFailed, HashMismatch, NotEnoughSpace, UnknownModel
from edgesdk.store import Store

pytestmark = pytest.mark.e2e


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


@pytest.mark.usefixtures("hasty")
def test_a_server_that_gives_nothing_more_is_given_up(store: Store, server: RangeServer) -> None:
    server.files["/m.gguf"] = Served(BODY, cuts=[1_000_000, 0, 0, 0, 0])
    with pytest.raises(DownloadFailed, match="goes on from there"):
        store.pull(server.url("/m.gguf"))
    assert partial_size(store) == 1_000_000
    assert store.list() == []
    assert store.pull(server.url("/m.gguf")).sha256 == SHA256
    assert server.asked("/m.gguf")[-1].range == "bytes=1000000-"


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.usefixtures("hasty")
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
@pytest.mark.usefixtures("hasty")
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


@pytest.mark.usefixtures("hasty")
def test_a_busy_server_is_asked_again(store: Store, server: RangeServer) -> None:
    server.files["/m.gguf"] = Served(b"", status=503)
    with pytest.raises(DownloadFailed, match="503"):
        store.pull(server.url("/m.gguf"))
    assert len(server.asked("/m.gguf")) == 4


@pytest.mark.usefixtures("hasty")
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


def test_an_unknown_name_needs_no_network(store: Store) -> None:
    with pytest.raises(UnknownModel, match="Did you mean smollm2-135m-instruct"):
        store.pull("smollm2-135-instruct")
    assert not store.root.exists()
