"""A GGUF's tokenizer, rebuilt, gives llama.cpp's own ids."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import gguf
import numpy as np
import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.tokenizers import read_text
from edgesdk_export.tokenizers.gguf_tokenizer import CUT_RULES
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from edgesdk.errors import CheckpointError

pytest.importorskip("llama_cpp")
from support.llama_vocab import llama_encoder

pytestmark = pytest.mark.integration

PAGE = [
    "Hello, world! It's what they'LL say; we'Re not sure he'd've gone.",
    "  two spaces before, three after   ",
    "\ttab\t\ttabs \t mixed",
    "CRLF\r\nnext\r\n\r\nlast\r",
    "NBSP\u00a0here,\u00a0\u00a0two; ideographic\u3000space; \u2003em",
    "run          of      spaces    ",
    "\n\n\n", " ", "", "\u00a0",
    "中文测试，你好世界！今天是2024年5月3日。混合English和中文text。",
    "日本語のテキスト、カタカナ。 한국어 텍스트.",
    "def f(x: int) -> str:\n    return f\"{x**2:>8}\"  # comment\n\n\nclass A:\n\tpass\n",
    "for (int i=0;i<10;++i){ a[i] <<= 0x1F; } // !=, ===, ->",
    "<div class=\"x\">&nbsp;</div>\\n \\t $100 50% a_b __init__ #tag @user",
    "👩‍👩‍👧‍👦 👍🏽👍🏿 🏳️‍🌈 ❤️ 🇩🇪🇫🇷 1️⃣ emoji😀inside",
    "3.14159 1,000,000 12345678901234567890 1e-5 ½ ² Ⅷ ٣٤٥ ①",
    "e\u0301 a\u0308\u0323 n\u0303o नमस्ते ภาษาไทย עִבְרִית",
    "\u200bzero\u200dwidth\ufeffbom \u2028line sep\u2029",
    "ﬁ ﬂ ǅ ß ſ İ ı K Å",
    "control \x00 \x07 \x1b[0m \x7f \x85",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<|endoftext|>",
    "<|im_start|><|im_end|> <|im_end|>x<|im_start |> <tool_call></tool_call>",
]  # fmt: skip


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf):
    return load(smollm2_gguf)


@pytest.fixture(scope="session")
def qwen(qwen_coder_gguf):
    return load(qwen_coder_gguf)


def load(path: Path):
    text = read_text(open_checkpoint(path))
    return Tokenizer.from_buffer(text.tokenizer_json), llama_encoder(path), text


@pytest.mark.parametrize("model", ["smollm2", "qwen"])
def test_the_page(model, request):
    ours, theirs, _ = request.getfixturevalue(model)
    for text in [*PAGE, "\n".join(PAGE), "".join(PAGE), "\r\n".join(reversed(PAGE))]:
        assert ours.encode(text).ids == theirs(text), repr(text)


# The planes past 3 hold next to nothing, and SmolLM2 lacks the bytes that begin them.
characters = st.characters(exclude_categories=["Cs"], max_codepoint=0x3FFFF)
texts = st.text(st.one_of(st.sampled_from(" \t\r\n'aZ1.<|中é"), characters), max_size=40)


@pytest.mark.parametrize("model", ["smollm2", "qwen"])
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=texts)
def test_any_text(model, text, request):
    ours, theirs, _ = request.getfixturevalue(model)
    # SmolLM2 has no token for some bytes (0x06, say). Both sides drop them, but `tokenizers` before
    # it merges their neighbours and llama.cpp after.
    assume(ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text)
    assert ours.encode(text).ids == theirs(text)


def test_ids_turn_back_into_the_text(smollm2, qwen):
    for ours, _, _ in (smollm2, qwen):
        for text in PAGE:
            assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text


def test_special_tokens_of_real_models(smollm2, qwen):
    entry = smollm2[2].entry
    assert (entry.bos_token, entry.eos_token, entry.add_bos) == (
        "<|im_start|>",
        "<|im_end|>",
        False,
    )
    assert entry.eos_token_ids == (2, 0)
    assert "<|im_start|>" in smollm2[2].chat_template
    entry = qwen[2].entry
    assert (entry.eos_token, entry.add_bos) == ("<|im_end|>", False)
    assert entry.eos_token_ids == (151645, 151643)


def test_the_same_file_gives_the_same_bytes(smollm2, smollm2_gguf):
    assert read_text(open_checkpoint(smollm2_gguf)).tokenizer_json == smollm2[2].tokenizer_json


# Pieces between which a pre-tokenizer may cut. Each pair of them is a token, so that every cut
# shows in the ids.
UNITS = [*"aBs'12 \n\r\t.$~", "中", "é", "½", "한", "\u3000", "\u00a0", "٣", "\u0301", "😀"]


def write_vocabulary(path: Path, model: str, pre: str | None, **parts) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(parts.get("name", "tiny"))
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(parts["tokens"])
    writer.add_token_types(parts["kinds"])
    if "scores" in parts:
        writer.add_token_scores(parts["scores"])
        writer.add_unk_token_id(0)
        writer.add_add_space_prefix(parts["add_space_prefix"])
    else:
        writer.add_token_merges([" ".join(merge) for merge in parts["merges"]])
    writer.add_eos_token_id(parts["eos"])
    writer.add_bos_token_id(parts["eos"])
    writer.add_tensor("token_embd.weight", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_vocabulary(path: Path, pre: str) -> Path:
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    units = [letters.pre_tokenize_str(unit)[0][0] for unit in UNITS]
    merges = dict.fromkeys((unit[:i], unit[i]) for unit in units for i in range(1, len(unit)))
    pairs = list(itertools.product(units, units))
    random.Random(1).shuffle(pairs)
    merges |= dict.fromkeys(pairs)
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = list(dict.fromkeys([*tokens, *("".join(merge) for merge in merges)]))
    kinds = [1] * len(tokens) + [3, 4]
    tokens += ["<|end|>", "<tool>"]
    return write_vocabulary(
        path, "gpt2", pre, tokens=tokens, kinds=kinds, merges=merges, eos=len(tokens) - 2
    )


@pytest.mark.parametrize("pre", sorted(CUT_RULES))
def test_each_way_of_cutting(pre, tmp_path):
    ours, theirs, _ = load(byte_vocabulary(tmp_path / "x.gguf", pre))
    rng = random.Random(2)
    pieces = [*UNITS, "<|end|>", "<tool>", "  ", "'s", "'LL", "123", "aBs"]
    for _ in range(400):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 14)))
        assert ours.encode(text).ids == theirs(text), repr(text)


def test_an_unknown_way_of_cutting_is_refused(tmp_path):
    path = byte_vocabulary(tmp_path / "x.gguf", "gpt-2")
    checkpoint = open_checkpoint(path)
    for name in ("gpt-5", None, 7):
        checkpoint.config["tokenizer.ggml.pre"] = name
        with pytest.raises(CheckpointError, match="is not known; known are"):
            read_text(checkpoint)


def sentencepiece_vocabulary(path: Path, *, add_space_prefix: bool, name: str) -> Path:
    letters = [*"▁abc1.\n", "中", "é"]
    pieces = ["".join(p) for n in (1, 2, 3) for p in itertools.product(letters, repeat=n)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    random.Random(3).shuffle(order := scores[259 + len(letters) :])
    scores[259 + len(letters) :] = order
    # Phi-3's tokens swallow whitespace; it has none that are whitespace themselves.
    run = "    " if name == "tiny" else "<run>"
    tokens += ["<|endoftext|>", "<end_of_turn>", run, "<b>"]
    kinds += [3, 3, 4, 4]
    scores += [-1e4] * 4
    return write_vocabulary(
        path, "llama", None, tokens=tokens, kinds=kinds, scores=scores, eos=2,
        add_space_prefix=add_space_prefix, name=name,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["tiny", "Phi-3 mini"])
@pytest.mark.parametrize("add_space_prefix", [True, False])
def test_sentencepiece(add_space_prefix, name, tmp_path):
    path = sentencepiece_vocabulary(
        tmp_path / "x.gguf", add_space_prefix=add_space_prefix, name=name
    )
    ours, theirs, text = load(path)
    rng = random.Random(4)
    pieces = [*" abc1.\n中é", "x", "😀", "한", "  ", "     ", "<end_of_turn>", "</s>", "<b>", "▁"]
    pieces += ["<|endoftext|>", "<unk>"]
    for _ in range(800):
        sample = "".join(rng.choices(pieces, k=rng.randint(1, 16)))
        assert ours.encode(sample).ids == theirs(sample), repr(sample)
    assert text.entry.add_bos
    ids = {
        token: i for i, token in enumerate(open_checkpoint(path).config["tokenizer.ggml.tokens"])
    }
    assert text.entry.eos_token_ids == (2, ids["<|endoftext|>"], ids["<end_of_turn>"])
