"""The text side of a safetensors folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.tokenizers import read_text
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgesdk.errors import CheckpointError, DamagedCheckpoint

VOCABULARY = {"<s>": 0, "</s>": 1, "<|end|>": 2, "a": 3, "b": 4, "<unk>": 5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"w": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    write(tmp_path, "config.json", {"eos_token_id": 1})
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>", "<|end|>"])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8, pad_token="</s>")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "tokenizer_config.json", {"bos_token": "<s>", "eos_token": {"content": "</s>"}})
    return tmp_path


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value))


def read(folder: Path):
    return read_text(open_checkpoint(folder))


def test_the_tokenizer_adds_and_cuts_nothing(folder):
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert len(original.encode("a b a b a b").ids) == 8
    text = read(folder)
    bare = Tokenizer.from_buffer(text.tokenizer_json)
    assert bare.encode("a b a b a b").ids == [3, 4, 3, 4, 3, 4]
    assert bare.encode("a<|end|>").ids == [3, 2]
    assert text == read(folder)


def test_a_harmless_tokenizer_keeps_its_bytes(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = processors.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    assert read(folder).tokenizer_json == (folder / "tokenizer.json").read_bytes()


def test_bos_is_added_if_the_post_processor_did(folder):
    entry = read(folder).entry
    assert (entry.add_bos, entry.bos_token, entry.bos_token_id) == (True, "<s>", 0)
    # transformers asks the post-processor, too, and not the setting.
    write(folder, "tokenizer_config.json", {"bos_token": "<s>", "add_bos_token": False})
    assert read(folder).entry.add_bos


@pytest.mark.parametrize("processor", [None, processors.ByteLevel()])
@pytest.mark.parametrize("setting", [True, False])
def test_the_setting_counts_where_no_post_processor_adds_anything(folder, processor, setting):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    parts = json.loads(tokenizer.to_str())
    made = None if processor is None else json.loads(processor.__getstate__())
    write(folder, "tokenizer.json", {**parts, "post_processor": made})
    write(folder, "tokenizer_config.json", {"bos_token": "<s>", "add_bos_token": setting})
    assert read(folder).entry.add_bos is setting


def test_templates_see_no_bos_that_only_the_config_names(folder):
    write(folder, "tokenizer_config.json", {})
    write(folder, "config.json", {"bos_token_id": 0, "eos_token_id": [1, 2]})
    entry = read(folder).entry
    assert (entry.bos_token, entry.bos_token_id) == (None, 0)
    assert (entry.eos_token, entry.eos_token_ids) == (None, (1, 2))


def test_named_special_tokens_are_for_the_template(folder):
    settings = {
        "pad_token": "<|end|>",
        "image_token": "a",
        "unk_token": {"__type": "AddedToken", "content": "<unk>", "lstrip": False},
        "sep_token": None,
        "add_bos_token": False,
        "extra_special_tokens": {"audio_token": "b"},
    }
    write(folder, "tokenizer_config.json", settings)
    expected = {"pad_token": "<|end|>", "image_token": "a", "unk_token": "<unk>"}
    assert read(folder).entry.special_tokens == {**expected, "audio_token": "b"}


def test_the_map_of_special_tokens_counts_beside_older_settings_only(folder):
    write(folder, "special_tokens_map.json", {"bos_token": "<s>", "pad_token": "a"})
    write(folder, "tokenizer_config.json", {"pad_token": "b"})
    entry = read(folder).entry
    assert (entry.bos_token, entry.special_tokens) == ("<s>", {"pad_token": "a"})
    write(folder, "tokenizer_config.json", {"pad_token": "b", "added_tokens_decoder": {}})
    entry = read(folder).entry
    assert (entry.bos_token, entry.special_tokens) == (None, {"pad_token": "b"})


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{% for m in messages %}{{ m.content }}<unk> {% endfor %}", (1, 2, 5)),
        ("{% for m in messages %}{{ m.content }}\n<unk>{% endfor %}<s>", (1, 2, 5)),
        ("{% for m in messages %}<unk>{{ m.content }}\n{% endfor %}", (1, 2)),
        ("{% for m in messages %}{{ m.content }}{{ pad_token }}{% endfor %}", (1, 2, 5)),
        ("{{ raise_exception('no') }}", (1, 2)),
        ("{% for m in messages %}<unk>{% endfor %}", (1, 2)),
        (
            "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}"
            "{% for m in messages %}{{ m.content }}<unk>{% endfor %}",
            (1, 2, 5),
        ),
    ],
)
def test_the_end_of_a_turn_ends_an_answer(folder, template, end):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "</s>", "pad_token": "<unk>", "chat_template": template}
    write(folder, "tokenizer_config.json", settings)
    assert sorted(read(folder).entry.eos_token_ids) == list(end)


def test_all_ends_are_gathered_in_order(folder):
    write(folder, "generation_config.json", {"eos_token_id": [2, 1]})
    entry = read(folder).entry
    assert (entry.eos_token, entry.eos_token_ids) == ("</s>", (1, 2))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{{ x }}", "{{ x }}"),
        ([{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}], "D"),
        ([{"name": "tool", "template": "T"}], "T"),
        (None, None),
        (7, None),
    ],
)
def test_templates_in_the_tokenizer_config(folder, value, expected):
    write(folder, "tokenizer_config.json", {"chat_template": value})
    text = read(folder)
    assert text.chat_template == expected
    assert text.entry.chat_template == ("chat_template.jinja" if expected else None)


def test_a_template_file_comes_first(folder):
    write(folder, "chat_template.json", {"chat_template": "oldest"})
    assert read(folder).chat_template == "oldest"
    write(folder, "tokenizer_config.json", {"chat_template": "old"})
    assert read(folder).chat_template == "old"
    (folder / "chat_template.jinja").write_text("new é", encoding="utf-8")
    assert read(folder).chat_template == "new é"


def test_prompts_with_tools_may_have_a_template_of_their_own(folder):
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    write(folder, "tokenizer_config.json", {"chat_template": named})
    text = read(folder)
    assert (text.chat_template, text.tool_template) == ("D", "T")
    assert text.entry.tool_template == "additional_chat_templates/tool_use.jinja"
    (folder / "chat_template.jinja").write_text("D2")
    assert (read(folder).chat_template, read(folder).tool_template) == ("D2", None)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("T2")
    (folder / "additional_chat_templates" / "rag.jinja").write_text("R")
    assert (read(folder).chat_template, read(folder).tool_template) == ("D2", "T2")


def test_what_cannot_be_read(folder):
    write(folder, "tokenizer_config.json", {"eos_token": "<nope>"})
    with pytest.raises(DamagedCheckpoint, match="'<nope>' is not in the vocabulary"):
        read(folder)
    (folder / "tokenizer.json").write_text('{"model": 7}')
    with pytest.raises(DamagedCheckpoint, match=r"tokenizer\.json cannot be loaded"):
        read(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        read(folder)
