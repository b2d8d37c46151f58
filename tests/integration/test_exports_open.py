"""An export that ends well opens, answers, and says what is missing; any other leaves nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from edgesdk_export import pipeline
from edgesdk_export.checkpoint.gguf_reader import read_gguf_contents
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.selftest import llama_process
from support.odd_checkpoints import (
    ODD_TOKENIZERS,
    plain,
    with_added_token,
    with_json,
    with_template,
    with_tokenizer,
)
from support.tiny_models import END, VOCAB_SIZE

import edgesdk
from edgesdk.bundle.opening import Bundle
from edgesdk.errors import CheckpointError, ConfigMismatch, ExportError, TemplateError

pytestmark = pytest.mark.integration

FORMATS = {"onnx": "fp32", "gguf": "f32"}


@pytest.fixture(params=FORMATS)
def fmt(request: pytest.FixtureRequest) -> str:
    if request.param == "gguf":
        pytest.importorskip("llama_cpp")
    return str(request.param)


def bundle_of(source: Path, fmt: str, target: Path) -> Bundle:
    job = ExportJob(source, target, "tiny", fmt, scheme=FORMATS[fmt], quality_tokens=0)
    return export(job, SilentProgress())


def answers(bundle: Bundle, prompt: str = "Hello") -> None:
    with edgesdk.load(bundle.path) as model:
        assert model.respond(prompt, max_tokens=3).receipt.prompt_tokens > len(prompt)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_ends_that_no_token_has_are_left_out_and_told(name, fmt, tmp_path):
    source = with_json(plain(tmp_path / "hf"), name, eos_token_id=[256, 2000])
    bundle = bundle_of(source, fmt, tmp_path / "b")
    assert bundle.manifest.tokenizer.eos_token_ids == (256,)
    assert any("2000" in note for note in bundle.manifest.notes)
    answers(bundle)


def test_a_begin_that_no_token_has_is_left_out_and_told(fmt, tmp_path):
    source = with_json(plain(tmp_path / "hf"), "config.json", bos_token_id=4000)
    with_json(source, "tokenizer_config.json", bos_token=None, add_bos_token=True)
    bundle = bundle_of(source, fmt, tmp_path / "b")
    assert bundle.manifest.tokenizer.bos_token_id is None
    assert not bundle.manifest.tokenizer.add_bos
    assert any("4000" in note for note in bundle.manifest.notes)
    answers(bundle)


UNUSABLE = {
    "no Jinja": ("{% for m in messages %}{{ m.content }", "not valid Jinja: line 1"),
    "an unknown filter": ("{{ messages | nothing }}", "No filter named 'nothing'"),
    "one that refuses": ("{{ raise_exception('ask me nothing') }}", "ask me nothing"),
    "one that is deaf": ("{{ 'You are a cat.' }}", "leaves out what the user says"),
    "empty": ("", "leaves out what the user says"),
    "none": (None, "the checkpoint has no chat template"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_without_a_usable_template_a_bundle_completes_and_says_so(what, fmt, tmp_path):
    template, reason = UNUSABLE[what]
    bundle = bundle_of(with_template(tmp_path / "hf", template), fmt, tmp_path / "b")
    assert bundle.manifest.tokenizer.chat_template is None
    assert reason in (bundle.manifest.tokenizer.template_problem or "")
    assert any("cannot chat" in note and reason in note for note in bundle.manifest.notes)
    assert not (bundle.path / "chat_template.jinja").exists()
    if fmt == "gguf":
        written = read_gguf_contents(bundle.path / "model.gguf").metadata
        assert "tokenizer.chat_template" not in written
    with edgesdk.load(bundle.path) as model:
        assert model.complete("Hello", max_tokens=3).receipt.prompt_tokens >= len("Hello")
        with pytest.raises(TemplateError, match="cannot chat") as refusal:
            model.respond("Hello")
    assert reason in str(refusal.value)


def test_a_template_that_wants_a_system_message_is_usable(fmt, tmp_path):
    template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    bundle = bundle_of(with_template(tmp_path / "hf", template), fmt, tmp_path / "b")
    assert bundle.manifest.tokenizer.chat_template == "chat_template.jinja"


@pytest.mark.parametrize("what", ODD_TOKENIZERS)
def test_a_tokenizer_of_words_opens_in_onnx(what, tmp_path):
    source = with_tokenizer(tmp_path / "hf", ODD_TOKENIZERS[what])
    bundle = bundle_of(source, "onnx", tmp_path / "b")
    with edgesdk.load(bundle.path) as model:
        assert len(model.complete("Hello the cat", max_tokens=4).tokens) in range(1, 5)


@pytest.mark.parametrize("what", ODD_TOKENIZERS)
def test_a_tokenizer_that_llama_cpp_has_not_is_refused_before_anything_is_written(what, tmp_path):
    source = with_tokenizer(tmp_path / "hf", ODD_TOKENIZERS[what])
    with pytest.raises(CheckpointError, match="Export to ONNX instead"):
        bundle_of(source, "gguf", tmp_path / "out" / "b")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("in_vocabulary", [False, True])
def test_added_tokens_without_a_row_are_dropped_and_told(in_vocabulary, fmt, tmp_path):
    source = plain(tmp_path / "hf")
    for place, token in enumerate(("<image>", "<audio>")):
        with_added_token(source, token, VOCAB_SIZE + place, in_vocabulary=in_vocabulary)
    bundle = bundle_of(source, fmt, tmp_path / "b")
    assert any("'<image>', '<audio>'" in note for note in bundle.manifest.notes)
    answers(bundle, "a <image> b<audio>")


def test_a_vocabulary_larger_than_the_embedding_is_refused(fmt, tmp_path):
    source = plain(tmp_path / "hf")
    parts = (source / "tokenizer.json").read_text()
    (source / "tokenizer.json").write_text(parts.replace('"vocab":{', '"vocab":{"zzz":320,', 1))
    if '"zzz"' not in (source / "tokenizer.json").read_text():
        (source / "tokenizer.json").write_text(
            parts.replace('"vocab": {', '"vocab": {"zzz": 320,', 1)
        )
    with pytest.raises(ConfigMismatch, match=r"has the id 320; the embedding has 320 rows"):
        bundle_of(source, fmt, tmp_path / "out" / "b")


TEXT = f"Hi{END} \n there{END}  <extra3>\t x"


@pytest.mark.parametrize(
    "folder", ["x-phi-3-y", "My-PHI3", "models--org--Phi-3-tiny/snapshots/0123456789abcdef"]
)
def test_a_folder_s_name_changes_no_ids(folder, tmp_path):
    pytest.importorskip("llama_cpp")
    plain_file = bundle_of(plain(tmp_path / "plain"), "gguf", tmp_path / "a").file("model.gguf")
    named_file = bundle_of(plain(tmp_path / folder), "gguf", tmp_path / "b").file("model.gguf")
    ids = llama_process.llama_ids(named_file, [TEXT])
    assert ids == llama_process.llama_ids(plain_file, [TEXT])
    name = read_gguf_contents(named_file).metadata["general.name"]
    assert "0123456789abcdef" not in name
    assert "phi" in name.lower()


def test_a_bundle_that_does_not_open_is_not_written(fmt, tmp_path, monkeypatch):
    original = pipeline._manifest

    def damaged(*arguments):
        manifest = original(*arguments)
        entry = manifest.tokenizer.model_copy(update={"eos_token_ids": (9999,)})
        return manifest.model_copy(update={"tokenizer": entry})

    monkeypatch.setattr(pipeline, "_manifest", damaged)
    with pytest.raises(ExportError, match=r"cannot use it: tokenizer\.json has no token 9999"):
        bundle_of(plain(tmp_path / "hf"), fmt, tmp_path / "out" / "b")
    assert not list((tmp_path / "out").iterdir())


def test_a_device_without_the_memory_tests_what_it_can(tmp_path, monkeypatch):
    """The bundle is good, though this device cannot run it."""
    stages = []
    monkeypatch.setattr(SilentProgress, "stage", lambda self, title, steps: stages.append(title))
    monkeypatch.setattr("edgesdk.system.plan.available_bytes", lambda: 1)
    bundle_of(plain(tmp_path / "hf"), "onnx", tmp_path / "b")
    assert stages[-1].startswith("Not opened: ")


def test_notes_are_a_part_of_the_manifest(tmp_path):
    bundle = bundle_of(with_template(tmp_path / "hf", None), "onnx", tmp_path / "b")
    again = bundle_of(with_template(tmp_path / "hf", None), "onnx", tmp_path / "c")
    assert bundle.manifest == again.manifest
    assert dataclasses.asdict(bundle)["sha256"] == again.sha256
