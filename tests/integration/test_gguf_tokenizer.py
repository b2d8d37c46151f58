from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from edgesdk.engines.gguf.engine import GgufEngine
from edgesdk.engines.registry import open_engine
from edgesdk.errors import EngineError, InvalidText

pytestmark = pytest.mark.integration

TEXTS = [
    "Hello, world!",
    "  two  spaces\n\n\ttabs",
    "河流从山上流下来。",
    "naïve café — 🦜🏳️‍🌈",
    "def f(x):\n    return x ** 2\n",
    "<|im_start|>user\nHi<|im_end|>\n",
    "",
    "a\0b",
]


@pytest.fixture(scope="module")
def engine(smollm2_gguf: Path) -> Iterator[GgufEngine]:
    engine = open_engine(smollm2_gguf, threads=1)
    assert isinstance(engine, GgufEngine)
    yield engine
    engine.close()


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(engine: GgufEngine, text: str) -> None:
    tokenizer = engine.tokenizer()
    ids = tokenizer.encode(text)
    plain = text.replace("<|im_start|>", "").replace("<|im_end|>", "")
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == plain


def test_same_ids_as_transformers(engine: GgufEngine, smollm2_gguf: Path) -> None:
    peer = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    for text in TEXTS:
        assert engine.tokenizer().encode(text) == peer.encode(text, add_special_tokens=False), text


def test_special_tokens(engine: GgufEngine) -> None:
    tokenizer = engine.tokenizer()
    assert tokenizer.vocab_size == engine.info.vocab_size == 49_152
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.encode("<|im_end|>") == [2]
    assert tokenizer.eos_token_ids >= {0, 2}
    assert tokenizer.token_bytes(2) == b""
    assert tokenizer.encode("a", add_bos=True) == tokenizer.encode("a")  # this model wants none


def test_chat_template(engine: GgufEngine) -> None:
    template = engine.chat_template()
    assert template is not None
    assert "<|im_start|>" in template


def test_lone_surrogate(engine: GgufEngine) -> None:
    with pytest.raises(InvalidText, match="lone surrogate at position 2"):
        engine.tokenizer().encode("ab\ud800")


def test_after_the_engine_is_closed(smollm2_gguf: Path) -> None:
    engine = open_engine(smollm2_gguf, threads=1)
    assert isinstance(engine, GgufEngine)
    tokenizer = engine.tokenizer()
    engine.close()
    for use in (lambda: tokenizer.encode("a"), lambda: tokenizer.token_bytes(50), engine.tokenizer):
        with pytest.raises(EngineError, match="closed"):
            use()
