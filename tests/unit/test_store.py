"""The store as a folder: bringing in, listing, checking and removing what lies there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgesdk.bundle.manifest import (
    Manifest,
    ModelShape,
    Quantization,
    SourceCheckpoint,
    TokenizerEntry,
)
from edgesdk.bundle.writing import staged_folder, write_manifest
from edgesdk.errors import (
    DamagedBundle,
    DamagedCheckpoint,
    DownloadFailed,
    InvalidOption,
    NotEnoughSpace,
    StoreBusy,
    StoreError,
    UnknownModel,
)
from edgesdk.store import Store, default_root, require_usable
from edgesdk.store.disk import removes_on_full_disk, require_space


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "Tiny Model.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)))
    return path


def _write_bundle(folder: Path, name: str = "tiny") -> None:
    manifest = Manifest.model_construct(
        format_version=2,
        name=name,
        format="onnx",
        target="cpu",
        roles={"decoder": "model.onnx"},
        shape=ModelShape(
            architecture="llama",
            layers=1,
            hidden_size=8,
            heads=2,
            kv_heads=1,
            head_size=4,
            vocab_size=16,
            context_length=64,
            parameters=1000,
        ),
        spec=None,
        tokenizer=TokenizerEntry(),
        source=SourceCheckpoint(name="tiny", container="gguf", sha256="0" * 64, dtypes=("F32",)),
        quality=None,
        quantization=Quantization(weights="int4", head="int8", method="rtn", bits_per_weight=4.5),
        licence="MIT",
        exporter="test",
        versions={},
        files=(),
    )
    with staged_folder(folder) as stage:
        (stage / "model.onnx").write_bytes(b"not a graph")
        (stage / "tokenizer.json").write_text("{}", encoding="utf-8")
        write_manifest(stage, manifest)


def test_the_root_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESDK_HOME", "/somewhere/else")
    assert default_root() == Path("/somewhere/else")
    monkeypatch.delenv("EDGESDK_HOME")
    assert default_root().name == "edgesdk"


def test_opening_a_store_writes_nothing(store: Store) -> None:
    assert store.list() == []
    assert store.find("tiny") is None
    assert not store.root.exists()


def test_a_pulled_file_is_listed_with_its_hash(store: Store, gguf: Path) -> None:
    entry = store.pull(str(gguf))
    assert entry.path.read_bytes() == gguf.read_bytes()
    assert (entry.name, entry.kind, entry.size) == ("tiny-model", "checkpoint", 260)
    assert entry.sha256 == hashlib.sha256(gguf.read_bytes()).hexdigest()
    assert store.list() == [entry]
    assert store.get("tiny-model") == store.verify("tiny-model") == entry


def test_a_pull_across_disks_copies(
    store: Store, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def within_one_disk(source: Any, target: Any, **folders: Any) -> None:
        if source == gguf:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target, **folders)

    monkeypatch.setattr(os, "link", within_one_disk)
    entry = store.pull(str(gguf))
    assert entry.path.read_bytes() == gguf.read_bytes()
    assert not entry.path.samefile(gguf)


def test_a_pulled_folder_leaves_pickles_behind(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "Checkpoint"
    source.mkdir()
    for name in ("model.safetensors", "config.json", "pytorch_model.bin", ".hidden.json"):
        (source / name).write_text(name, encoding="utf-8")
    entry = store.pull(f"{source}/", name="mine")
    assert sorted(file.name for file in store.record("mine").files) == [
        "config.json",
        "model.safetensors",
    ]
    assert entry.path == store.folder("mine", "checkpoint")
    listing = "".join(
        f"{hashlib.sha256((entry.path / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("config.json", "model.safetensors")
    )
    assert entry.sha256 == hashlib.sha256(listing.encode()).hexdigest()


def test_a_pulled_bundle_is_a_bundle(store: Store, tmp_path: Path) -> None:
    _write_bundle(tmp_path / "exported")
    entry = store.pull(str(tmp_path / "exported"), name="tiny")
    assert (entry.kind, entry.path) == ("bundle", store.bundle_path("tiny"))
    with pytest.raises(StoreError, match="has a bundle 'tiny' already"):
        store.pull(str(tmp_path / "exported"), name="tiny")
    assert store.verify("tiny") == entry


def test_pulling_again_changes_nothing(store: Store, gguf: Path) -> None:
    first = store.pull(str(gguf))
    before = first.path.stat().st_ino
    assert store.pull(str(gguf)) == first
    assert first.path.stat().st_ino == before


def test_a_taken_name_is_not_overwritten(store: Store, gguf: Path, tmp_path: Path) -> None:
    entry = store.pull(str(gguf), name="tiny")
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUFother")
    with pytest.raises(StoreError, match="already, from"):
        store.pull(str(other), name="tiny")
    assert entry.path.read_bytes() == gguf.read_bytes()


def test_a_damaged_model_is_shown_and_healed_by_a_pull(store: Store, gguf: Path) -> None:
    entry = store.pull(str(gguf))
    entry.path.unlink()
    entry.path.write_bytes(b"GGUF")
    (broken,) = store.list()
    assert broken.problem is not None
    assert "4 bytes; it had 260" in broken.problem
    with pytest.raises(DamagedCheckpoint):
        require_usable(broken)
    assert store.pull(str(gguf)) == entry
    assert require_usable(store.get("tiny-model")) == entry


def test_verify_finds_one_flipped_byte(store: Store, gguf: Path) -> None:
    entry = store.pull(str(gguf))
    content = bytearray(gguf.read_bytes())
    content[100] ^= 1
    entry.path.unlink()
    entry.path.write_bytes(content)
    assert store.get("tiny-model").problem is None
    with pytest.raises(DamagedCheckpoint, match="is damaged"):
        store.verify("tiny-model")


def test_verify_finds_one_flipped_byte_in_a_bundle(store: Store) -> None:
    _write_bundle(store.bundle_path("tiny"))
    assert store.verify("tiny").kind == "bundle"
    (store.bundle_path("tiny") / "model.onnx").write_bytes(b"not a grapH")
    with pytest.raises(DamagedBundle, match="is damaged"):
        store.verify("tiny")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format_version": 1}', "\xff", '{"format_version": 2}']
)
def test_a_malformed_record_is_a_problem_of_one_entry(store: Store, gguf: Path, text: str) -> None:
    store.pull(str(gguf), name="good")
    store.pull(str(gguf), name="bad")
    record = store.folder("bad", "checkpoint") / "edgesdk-checkpoint.json"
    record.write_bytes(text.encode("latin-1"))
    problems = {entry.name: entry.problem for entry in store.list()}
    assert problems["good"] is None
    assert problems["bad"] is not None
    with pytest.raises(DamagedCheckpoint):
        store.verify("bad")


def test_a_record_cannot_point_outside(store: Store, gguf: Path) -> None:
    store.pull(str(gguf), name="bad")
    path = store.folder("bad", "checkpoint") / "edgesdk-checkpoint.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["files"][0]["name"] = "../../../secret"
    path.write_text(json.dumps(record), encoding="utf-8")
    problem = store.get("bad").problem
    assert problem is not None
    assert "not a file inside" in problem


def test_of_a_checkpoint_and_a_bundle_the_bundle_is_meant(store: Store, gguf: Path) -> None:
    store.pull(str(gguf), name="tiny")
    _write_bundle(store.bundle_path("tiny"))
    assert [entry.kind for entry in store.list()] == ["bundle", "checkpoint"]
    assert store.get("tiny").kind == "bundle"
    assert store.get("tiny", "checkpoint").kind == "checkpoint"
    with pytest.raises(InvalidOption, match="--kind"):
        store.remove("tiny")
    assert [entry.kind for entry in store.remove("tiny", "bundle")] == ["bundle"]
    assert store.get("tiny").kind == "checkpoint"


def test_removing_leaves_nothing(store: Store, gguf: Path) -> None:
    entry = store.pull(str(gguf))
    assert store.remove("tiny-model") == (entry,)
    assert store.list() == []
    assert [p for p in store.root.rglob("*") if p.is_file() and p.suffix != ".lock"] == []
    assert gguf.exists()


def test_an_unknown_name_says_how_to_get_it(store: Store, gguf: Path) -> None:
    with pytest.raises(UnknownModel, match="Run: edgesdk pull smollm2-135m-instruct"):
        store.get("smollm2-135m-instruct")
    store.pull(str(gguf), name="grocery-clerk")
    with pytest.raises(UnknownModel, match=r"Did you mean grocery-clerk\?"):
        store.get("grocery-clark")
    with pytest.raises(UnknownModel, match="no bundle 'grocery-clerk'"):
        store.get("grocery-clerk", "bundle")
    with pytest.raises(UnknownModel):
        store.remove("nothing-here")


@pytest.mark.parametrize("name", ["../evil", "", "Upper", ".hidden", "a" * 97, "a/b"])
def test_a_name_cannot_leave_the_store(store: Store, gguf: Path, name: str) -> None:
    for call in (store.get, store.remove, store.bundle_path, store.verify):
        with pytest.raises(InvalidOption):
            call(name)
    if name:
        with pytest.raises(InvalidOption):
            store.pull(str(gguf), name=name)


def test_a_path_with_nothing_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="no file or folder"):
        store.pull(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DownloadFailed, match="no safetensors"):
        store.pull(str(tmp_path / "empty"))
    assert store.list() == []
    assert list((store.root / "downloads").iterdir()) == []


def test_a_second_process_is_told_to_wait(store: Store, gguf: Path) -> None:
    path = store.root / "locks" / "tiny-model.lock"
    path.parent.mkdir(parents=True)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire();"
            "print('held', flush=True); sys.stdin.read()",
            str(path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreBusy, match=r"tiny-model after 0\.1 s"):
            store.pull(str(gguf), wait=0.1)
        with pytest.raises(StoreBusy):
            store.remove("tiny-model", wait=0.1)
    finally:
        holder.communicate()
    assert store.pull(str(gguf), wait=0.1).name == "tiny-model"


def test_space_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    require_space(tmp_path, 1)
    with pytest.raises(NotEnoughSpace, match="MB more are needed"):
        require_space(tmp_path, 2**60)


def test_a_full_disk_loses_the_partial_file(tmp_path: Path) -> None:
    partial = tmp_path / "x.partial"
    partial.write_bytes(b"some")
    with pytest.raises(NotEnoughSpace, match=r"x\.partial"), removes_on_full_disk(partial):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not partial.exists()
    with pytest.raises(PermissionError), removes_on_full_disk(partial):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_paths_may_be_texts(tmp_path: Path, gguf: Path) -> None:
    store = Store(str(tmp_path / "store"))
    assert store.root == tmp_path / "store"
    pulled = store.pull(gguf)
    assert pulled == store.pull(str(gguf)) == Store(tmp_path / "store").get("tiny-model")


def test_a_path_object_is_never_a_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="There is no file or folder"):
        Store(tmp_path).pull(Path("smollm2-135m-instruct"))


def test_the_store_loads_no_heavy_library() -> None:
    code = (
        "import sys, edgesdk.store; edgesdk.store.Store().list();"
        "print([m for m in ('rich', 'click', 'huggingface_hub', 'httpx', 'onnxruntime')"
        " if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.strip() == "[]"
