"""What is read of a folder's text side, against transformers' own tokenizers and llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.gguf import vocabulary_metadata
from edgesdk_export.gguf.container import TensorPlan, write_container
from edgesdk_export.tokenizers import TextFiles, read_text
from edgesdk_quantize.formats import ggml
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from edgesdk.text.prompts import PromptEncoder
from edgesdk.text.template import ChatTemplate
from edgesdk.text.tokenizer import BundleTokenizer

pytest.importorskip("llama_cpp")
from support.llama_vocab import llama_ends

pytestmark = pytest.mark.integration

SPECIAL = ["<s>", "</s>", "<unk>", "<pad>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<bos>"]
_BOS = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
PROCESSORS: dict[str, Any] = {
    "none": None,
    "offsets": processors.ByteLevel(),
    "bos": _BOS,
    "sequence": processors.Sequence([processors.ByteLevel(), _BOS]),
    "eos": processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)]),
}
CLASSES = [
    *("PreTrainedTokenizerFast", "LlamaTokenizerFast", "GemmaTokenizer", "GPT2Tokenizer"),
    *("Qwen2Tokenizer", "Qwen2TokenizerFast", "CohereTokenizerFast"),
]
VARIABLES = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{{ [bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token, image_token,"
    " eoi_token] }}"
)


def write(
    folder: Path,
    settings: dict[str, Any],
    processor: Any = None,
    config: dict[str, Any] | None = None,
) -> Path:
    folder.mkdir(exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    if processor is not None:
        tokenizer.post_processor = processor
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"model_type": "llama", "vocab_size": len(ids), **(config or {})}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    save_file({"w": np.zeros(2, np.float32)}, folder / "model.safetensors")
    return folder


def read(folder: Path) -> TextFiles:
    return read_text(open_checkpoint(folder))


def encoder(folder: Path, text: TextFiles) -> PromptEncoder:
    path = folder / "bundled.json"
    path.write_bytes(text.tokenizer_json)
    assert text.chat_template is not None
    entry = text.entry
    return PromptEncoder(
        BundleTokenizer(path, entry),
        ChatTemplate(text.chat_template),
        entry.bos_token,
        entry.eos_token,
        special_tokens=entry.special_tokens,
        tool_template=None if text.tool_template is None else ChatTemplate(text.tool_template),
    )


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    ("setting", "processor"),
    [
        (setting, processor)
        for setting in (None, True, False)
        for processor in PROCESSORS
        # transformers 5 ignores what older versions and llama.cpp obey.
        if not (setting and processor in ("none", "offsets"))
    ],
)
def test_bos_is_put_before_a_text_as_by_transformers(
    tmp_path: Path, kind: str, setting: bool | None, processor: str
) -> None:
    settings = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>"}
    if setting is not None:
        settings["add_bos_token"] = setting
    folder = write(tmp_path / "x", settings, PROCESSORS[processor])

    theirs = AutoTokenizer.from_pretrained(folder)("a").input_ids

    assert read(folder).entry.add_bos == (theirs[:1] == [0])


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>"},
        {"bos_token": None, "image_token": "<unk>", "unk_token": "<unk>"},
        {"extra_special_tokens": {"eoi_token": "<|im_start|>"}, "eos_token": "</s>"},
        {"eos_token": {"__type": "AddedToken", "content": "</s>", "special": True}},
    ],
)
def test_templates_see_the_variables_of_transformers(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    settings = {"tokenizer_class": kind, "chat_template": VARIABLES, **settings}
    folder = write(tmp_path / "x", settings, config={"bos_token_id": 2, "eos_token_id": 1})
    text = read(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    # transformers adds the tokens that its class names and the vocabulary lacks.
    lacking = {name for name, token in theirs.special_tokens_map.items() if token not in SPECIAL}
    known = {k: v for k, v in theirs.special_tokens_map.items() if k not in lacking}
    mine = {"bos_token": text.entry.bos_token, "eos_token": text.entry.eos_token}

    shown = {**text.entry.special_tokens, **{k: v for k, v in mine.items() if v is not None}}

    assert shown == known
    if not lacking:
        messages = [{"role": "user", "content": "<s>"}]
        expected = theirs.apply_chat_template(messages, tokenize=False)
        assert encoder(folder, text).template is not None
        rendered = ChatTemplate(VARIABLES).render(
            messages, add_generation_prompt=False, special_tokens=shown
        )
        assert rendered == expected


@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "f"}}]])
@pytest.mark.parametrize("where", ["list", "files", "both"])
def test_the_template_is_chosen_as_by_transformers(tmp_path: Path, tools: Any, where: str) -> None:
    named = [
        {"name": "tool_use", "template": "T{{ messages[0].content }}"},
        {"name": "default", "template": "D{{ messages[0].content }}"},
    ]
    folder = write(tmp_path / "x", {} if where == "files" else {"chat_template": named})
    if where != "list":
        (folder / "chat_template.jinja").write_text("E{{ messages[0].content }}")
        (folder / "additional_chat_templates").mkdir()
        path = folder / "additional_chat_templates" / "tool_use.jinja"
        path.write_text("U{{ messages[0].content }}")
    messages = [{"role": "user", "content": "Hi"}]
    theirs = AutoTokenizer.from_pretrained(folder)

    ids = encoder(folder, read(folder)).chat(messages, tools=tools)

    assert ids == theirs.apply_chat_template(messages, tools=tools, return_dict=False)


def test_a_bos_of_config_json_alone_is_not_written(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
    settings = {"chat_template": template, "eos_token": "</s>", "add_bos_token": False}
    folder = write(tmp_path / "x", settings, config={"bos_token_id": 7})
    messages = [{"role": "user", "content": "Hi"}]
    theirs = AutoTokenizer.from_pretrained(folder)

    ids = encoder(folder, read(folder)).chat(messages)

    assert ids == theirs.apply_chat_template(messages, return_dict=False)


@pytest.mark.parametrize(
    "ends", [[1], [1, 5], [20, 1, 4, 5], [20, 21, 22, 23], [30, 31, 32, 33, 34, 35]]
)
def test_llama_cpp_ends_at_every_end(tmp_path: Path, ends: list[int]) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.content }}</s>{% endfor %}"
    settings = {"eos_token": None, "chat_template": template}
    folder = write(tmp_path / "x", settings, config={"eos_token_id": ends})
    checkpoint, text = open_checkpoint(folder), read(folder)
    size = checkpoint.config["vocab_size"]
    metadata = {
        "general.architecture": "llama",
        "general.name": "tiny",
        **vocabulary_metadata(checkpoint, text, size),
    }
    path = tmp_path / "x.gguf"
    empty = TensorPlan(
        "token_embd.weight", (1, 32), ggml.F32, lambda: [np.zeros((1, 32), np.float32)]
    )
    write_container(path, metadata, [empty], written=lambda _: None)

    found = llama_ends(path)

    # By the settings, by the template, by name.
    wanted = {*ends, 1, 5, 6}
    assert set(text.entry.eos_token_ids) == wanted
    assert found == wanted
