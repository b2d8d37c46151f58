"""Bundles: what is written is what is read, and nothing else is taken for one."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk.bundle.manifest import (
    MANIFEST_NAME,
    Manifest,
    ModelShape,
    Quantization,
    SourceCheckpoint,
    TokenizerEntry,
    parse_manifest,
)
from edgesdk.bundle.opening import open_bundle, verify_bundle
from edgesdk.bundle.writing import staged_folder, write_manifest
from edgesdk.errors import BundleError, DamagedBundle, UnsupportedBundle

SHAPE = ModelShape(
    architecture="llama",
    layers=2,
    hidden_size=8,
    heads=2,
    kv_heads=1,
    head_size=4,
    vocab_size=16,
    context_length=32,
    parameters=100,
)


def _draft() -> Manifest:
    return Manifest.model_construct(
        format_version=2,
        name="tiny",
        format="onnx",
        target="cpu",
        roles={"decoder": "model.onnx"},
        shape=SHAPE,
        spec=None,
        tokenizer=TokenizerEntry(eos_token_ids=(2,)),
        source=SourceCheckpoint(name="tiny", container="gguf", sha256="0" * 64, dtypes=("F32",)),
        quantization=Quantization(weights="fp32", head="fp32", method="none", bits_per_weight=32),
        quality=None,
        licence="Apache-2.0",
        exporter="test",
        versions={},
        files=(),
    )


def _write(destination: Path, *, replace: bool = False) -> Path:
    with staged_folder(destination, replace=replace) as stage:
        (stage / "model.onnx").write_bytes(b"graph" * 1000)
        (stage / "tokenizer.json").write_bytes(b"{}")
        write_manifest(stage, _draft())
    return destination


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("bundles") / "tiny")


def test_written_is_read(good: Path) -> None:
    bundle = open_bundle(good)
    verify_bundle(bundle)
    assert bundle.manifest.shape == SHAPE
    assert {entry.name for entry in bundle.manifest.files} == {"model.onnx", "tokenizer.json"}
    assert bundle.size == 5002
    assert [path.name for path in good.parent.iterdir()] == ["tiny"]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = _write(tmp_path / "one"), _write(tmp_path / "two")
    assert (one / MANIFEST_NAME).read_bytes() == (two / MANIFEST_NAME).read_bytes()
    assert open_bundle(one).sha256 == open_bundle(two).sha256


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_one_flipped_byte_is_found(good: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(good, tmp_path / "copy")
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    bundle = open_bundle(copy)
    with pytest.raises(DamagedBundle, match=name):
        verify_bundle(bundle)


def test_a_missing_or_cut_file_is_found_on_opening(good: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(good, tmp_path / "cut")
    (cut / "model.onnx").write_bytes(b"graph")
    with pytest.raises(DamagedBundle, match="5 bytes; the manifest says 5,000"):
        open_bundle(cut)
    gone = shutil.copytree(good, tmp_path / "gone")
    (gone / "tokenizer.json").unlink()
    with pytest.raises(DamagedBundle, match="is missing"):
        open_bundle(gone)


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="edgesdk export"):
        open_bundle(tmp_path)


def test_a_failed_write_leaves_what_stood_there(good: Path, tmp_path: Path) -> None:
    place = shutil.copytree(good, tmp_path / "place")
    before = open_bundle(place).sha256

    def fail() -> None:
        with staged_folder(place, replace=True) as stage:
            (stage / "half").write_bytes(b"x")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert open_bundle(place).sha256 == before
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_only_a_bundle_is_replaced(good: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("x")
    with pytest.raises(BundleError, match="exists already"):
        _write(precious, replace=True)
    assert (precious / "thesis.txt").exists()
    place = shutil.copytree(good, tmp_path / "place")
    with pytest.raises(BundleError, match="--force"):
        _write(place)
    _write(place, replace=True)
    verify_bundle(open_bundle(place))


def test_another_format_version_says_so(good: Path) -> None:
    raw = json.loads((good / MANIFEST_NAME).read_text())
    raw["format_version"] = 1
    with pytest.raises(UnsupportedBundle, match="version 1; this edgesdk reads version 2"):
        parse_manifest(json.dumps(raw), where="here")


def test_a_file_is_found_by_its_role(good: Path) -> None:
    bundle = open_bundle(good)
    assert bundle.role_file("decoder") == good / "model.onnx"
    with pytest.raises(UnsupportedBundle, match="no file in the role 'prefill', only decoder"):
        bundle.role_file("prefill")


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ({"decoder": "other.onnx"}, "'other.onnx' is not among its files"),
        ({"decoder": "model.onnx", "draft": "draft.onnx"}, "'draft.onnx' is not among its files"),
        ({"reader": "model.onnx"}, "roles.reader"),
        ({"encoder": "model.onnx"}, "an encoder either embeds or scores"),
        ({}, "roles"),
    ],
)
def test_roles_that_no_engine_can_use(good: Path, roles: dict[str, str], words: str) -> None:
    raw = json.loads((good / MANIFEST_NAME).read_text())
    raw["roles"] = roles
    with pytest.raises(DamagedBundle, match=words):
        parse_manifest(json.dumps(raw), where="here")


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "", "c:\\x", "a\x00b"])
def test_file_names_stay_inside(good: Path, name: str) -> None:
    raw = json.loads((good / MANIFEST_NAME).read_text())
    raw["files"].append({"name": name, "size": 0, "sha256": "0" * 64})
    with pytest.raises(DamagedBundle, match=r"files\.2\.name"):
        parse_manifest(json.dumps(raw), where="here")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_any_damage_to_a_manifest_is_a_clear_error_or_harmless(good: Path, data) -> None:
    raw = json.loads((good / MANIFEST_NAME).read_text())
    key = data.draw(st.sampled_from(sorted(raw)))
    raw[key] = data.draw(_JSON)
    with contextlib.suppress(BundleError):
        assert parse_manifest(json.dumps(raw), where="here").format_version == 2


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=60))
def test_bytes_that_are_no_manifest(data: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(data, where="here")
