"""Repositories of a hub that speaks as Hugging Face does, on loopback."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from range_server import RangeServer, Served
from support.pulls import BODY, SHA256, partial_size, start_pull, wait_until

from edgesdk.store import Store

pytestmark = pytest.mark.e2e


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


def test_a_killed_pull_from_the_hub_goes_on_where_it_stopped(
    store: Store, server: RangeServer, hub: dict[str, bytes], tmp_path: Path
) -> None:
    path = f"/owner/Repo/resolve/{'c' * 40}/model.safetensors"
    release = threading.Event()
    server.files[path] = Served(hub["model.safetensors"], stall=(2_000_000, release))
    environment = _hub_environment(server, tmp_path)
    first = start_pull(store, "hf:owner/Repo", **environment)
    wait_until(lambda: partial_size(store) >= 1_500_000)
    first.kill()
    first.communicate()
    release.set()
    kept = partial_size(store)
    second = start_pull(store, "hf:owner/Repo", **environment)
    _, err = second.communicate()
    assert second.returncode == 0, err
    assert [request.range for request in server.asked(path)] == [None, f"bytes={kept}-"]
    assert store.verify("repo").size == store.record("repo").size


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
