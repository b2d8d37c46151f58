"""Damaged bundle folders: opened or refused, and never anything outside of the folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.fuzzing import chances, damaged, damaged_json, outcome, report

from edgesdk.bundle.manifest import (
    MANIFEST_NAME,
    Manifest,
    ModelShape,
    Quality,
    Quantization,
    SourceCheckpoint,
    TokenizerEntry,
)
from edgesdk.bundle.opening import open_bundle, verify_bundle
from edgesdk.bundle.writing import staged_folder, write_manifest
from edgesdk.engines.registry import footprint
from edgesdk.engines.selection import select
from edgesdk.errors import DamagedBundle
from edgesdk.system.plan import plan_for

ROUNDS = 400
_SHA = "0" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with staged_folder(tmp_path / "tiny") as stage:
        for name in ("model.onnx", "tokenizer.json", "chat_template.jinja"):
            (stage / name).write_bytes(name.encode() * 20)
        write_manifest(stage, _manifest())
    return tmp_path / "tiny"


def _manifest() -> Manifest:
    fields: dict[str, Any] = {
        "name": "tiny",
        "format": "onnx",
        "target": "cpu",
        "roles": {"decoder": "model.onnx"},
        "shape": ModelShape(
            architecture="llama",
            layers=2,
            hidden_size=8,
            heads=2,
            kv_heads=1,
            head_size=4,
            vocab_size=16,
            context_length=32,
            parameters=100,
        ),
        "spec": {"tied": False, "layers": [{"window": None}]},
        "tokenizer": TokenizerEntry(eos_token_ids=(2,), chat_template="chat_template.jinja"),
        "source": SourceCheckpoint(name="tiny", container="gguf", sha256=_SHA, dtypes=("F32",)),
        "quantization": Quantization(weights="int4", head="int8", method="rtn", bits_per_weight=4),
        "quality": Quality(
            tokens=10,
            text_name="t",
            text_sha256=_SHA,
            kl_mean=0.1,
            kl_median=0.1,
            kl_p99=0.1,
            top1_agreement=0.9,
            perplexity=9,
            checkpoint_perplexity=8,
        ),
        "licence": "Apache-2.0",
        "exporter": "test",
        "versions": {"edgesdk": "1"},
        "files": (),
    }
    return Manifest.model_construct(format_version=2, **fields)


def _use(folder: Path) -> None:
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    for entry in manifest.files:
        assert bundle.file(entry.name).resolve().is_relative_to(folder.resolve())
    if manifest.quality is not None:
        manifest.quality.line()
    if manifest.format == "onnx":
        found = footprint(bundle)
        plan_for(found, min(10, found.context_length), available=10**9, bandwidth=1e9)
    select(bundle)
    verify_bundle(bundle)


def test_damaged_manifest_bytes(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    whole = path.read_bytes()
    seen: Counter[str] = Counter()
    for chance in chances(ROUNDS):
        path.write_bytes(damaged(whole, chance, [(0, len(whole))]))
        seen[outcome(lambda: _use(folder))] += 1
    report("manifest bytes", seen)


def test_other_manifest_values(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    manifest = json.loads(path.read_bytes())
    seen: Counter[str] = Counter()
    for chance in chances(ROUNDS):
        path.write_text(json.dumps(damaged_json(manifest, chance)))
        seen[outcome(lambda: _use(folder))] += 1
    report("manifest values", seen)


@pytest.mark.parametrize(
    "name", ["a" * 300, "a/" * 3000, "tokenizer.json/more", ".", "..", "./../x", "a//../x"]
)
def test_a_file_name_that_no_folder_has(folder: Path, name: str) -> None:
    path = folder / MANIFEST_NAME
    manifest = json.loads(path.read_bytes())
    manifest["files"].append({"name": name, "size": 0, "sha256": _SHA})
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedBundle):
        open_bundle(folder)


def test_a_file_that_cannot_be_read(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to("model.onnx")
    with pytest.raises(DamagedBundle):
        open_bundle(folder)
