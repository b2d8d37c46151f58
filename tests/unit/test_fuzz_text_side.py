"""Damaged tokenizers and chat templates: they work, or are refused with a reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.fuzzing import chances, damaged, damaged_json, outcome, report
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgesdk.bundle.manifest import TokenizerEntry
from edgesdk.bundle.opening import read_utf8
from edgesdk.text.template import ChatTemplate
from edgesdk.text.tokenizer import BundleTokenizer

ROUNDS = 300
TEMPLATE = """{%- for message in messages %}
{{- '<|start|>' + message['role'] + '\\n' + message['content'] | trim + '<|end|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""


@pytest.fixture(scope="module")
def tokenizer_json() -> str:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "ab", "abc"])}
    made = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("ab", "c")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    return made.to_str()


def use(path: Path) -> None:
    tokenizer = BundleTokenizer(path, TokenizerEntry(eos_token_ids=(258,)))
    for token in tokenizer.encode("abc, a text\nof a few words"):
        tokenizer.token_bytes(token)


def test_damaged_tokenizers(tokenizer_json: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    value: Any = json.loads(tokenizer_json)
    data = tokenizer_json.encode()
    seen: Counter[str] = Counter()
    for round_, chance in enumerate(chances(ROUNDS)):
        if round_ % 2:
            path.write_bytes(damaged(data, chance, [(0, len(data))]))
        else:
            path.write_text(json.dumps(damaged_json(value, chance)))
        seen[outcome(lambda: use(path))] += 1
    report("tokenizers", seen)


def test_damaged_templates(tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    data = TEMPLATE.encode()
    messages = [{"role": "user", "content": " hello "}]
    seen: Counter[str] = Counter()
    for chance in chances(ROUNDS):
        path.write_bytes(damaged(data, chance, [(0, len(data))]))
        seen[outcome(lambda: ChatTemplate(read_utf8(path)).render(messages))] += 1
    report("templates", seen)
