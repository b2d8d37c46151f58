"""The tokenizer in a GGUF that we write: llama.cpp gives the ids of the checkpoint's own."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.checkpoint.gguf_reader import read_gguf_contents
from edgesdk_export.gguf import vocabulary_metadata
from edgesdk_export.gguf.container import TensorPlan, write_container
from edgesdk_export.gguf.model_name import model_name
from edgesdk_export.tokenizers import read_text
from edgesdk_quantize.formats import ggml
from safetensors.numpy import save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from edgesdk.errors import CheckpointError

pytest.importorskip("llama_cpp")
from support.llama_vocab import llama_encoder

pytestmark = pytest.mark.integration

# The regular expressions that the published tokenizers carry.
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_UP, _LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FRONT = r"[^\r\n\p{L}\p{N}]?"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"{_FRONT}{_UP}*{_LOW}+|{_FRONT}{_UP}+{_LOW}*|\p{{N}}|{_SLASHED}"
GPT_4O = rf"{_FRONT}{_UP}*{_LOW}+{_SHORT}?|{_FRONT}{_UP}+{_LOW}*{_SHORT}?|\p{{N}}{{1,3}}|{_SLASHED}"

# Pieces between which a pre-tokenizer may cut. Each pair of them is a token, so that every cut
# shows in the ids.
UNITS = [*"aBs'12 \n\r\t.$~/", "中", "é", "½", "한", "\u3000", "\u00a0", "٣", "\u0301", "😀"]


def by_regex(pattern: str):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PLAIN = pre_tokenizers.ByteLevel(add_prefix_space=False)
# By llama.cpp's name: what cuts, and whether whole words are taken without merging.
BYTE_LEVEL = {
    "gpt-2": (PLAIN, False),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(True), PLAIN]), False),
    "llama-bpe": (by_regex(LLAMA3), True),
    "smaug-bpe": (by_regex(LLAMA3), False),
    "qwen2": (by_regex(QWEN2), False),
    "tekken": (by_regex(TEKKEN), True),
    "gpt-4o": (by_regex(GPT_4O), False),
}
# llama.cpp's own patterns for these know no combining marks.
APPROXIMATE = ("tekken", "gpt-4o")


def save_checkpoint(tokenizer: Tokenizer, folder: Path, **settings) -> Path:
    """A folder with a tokenizer, and hardly any weights."""
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"x": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return folder


def write_vocabulary(
    source: Path, path: Path, extra: int = 3, name: str = "tiny"
) -> tuple[Tokenizer, Path]:
    """The tokenizer of a checkpoint, and a GGUF of nothing else."""
    checkpoint = open_checkpoint(source)
    text = read_text(checkpoint)
    tokenizer = Tokenizer.from_buffer(text.tokenizer_json)
    size = tokenizer.get_vocab_size() + extra
    metadata = {
        "general.architecture": "llama",
        "general.name": name,
        **vocabulary_metadata(checkpoint, text, size),
    }
    empty = TensorPlan(
        "token_embd.weight", (1, 32), ggml.F32, lambda: [np.zeros((1, 32), np.float32)]
    )
    write_container(path, metadata, [empty], written=lambda _: None)
    return tokenizer, path


def byte_level(cut, whole_words: bool) -> Tokenizer:
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    units = [letters.pre_tokenize_str(unit)[0][0] for unit in UNITS]
    merges = dict.fromkeys((unit[:i], unit[i]) for unit in units for i in range(1, len(unit)))
    pairs = list(itertools.product(units, units))
    random.Random(1).shuffle(pairs)
    merges |= dict.fromkeys(pairs)
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = list(dict.fromkeys([*tokens, *("".join(merge) for merge in merges)]))
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(ids, list(merges), ignore_merges=whole_words))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return tokenizer


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_each_way_of_cutting_is_recognized_and_is_llama_cpp_s(name, tmp_path):
    cut, whole_words = BYTE_LEVEL[name]
    source = save_checkpoint(
        byte_level(cut, whole_words), tmp_path / "hf", bos_token="<|end|>", eos_token="<|end|>"
    )
    ours, path = write_vocabulary(source, tmp_path / "x.gguf")
    assert read_gguf_contents(path).metadata["tokenizer.ggml.pre"] == name
    theirs = llama_encoder(path)
    rng = random.Random(2)
    pieces = [*UNITS, "<|end|>", "<tool>", "  ", "'s", "'LL", "123", "aBs", "\r\n", "/\n"]
    if name in APPROXIMATE:
        pieces.remove("\u0301")
    for _ in range(400):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 14)))
        assert ours.encode(text).ids == theirs(text), repr(text)


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_what_is_written_can_be_read(name, tmp_path):
    cut, whole_words = BYTE_LEVEL[name]
    source = save_checkpoint(
        byte_level(cut, whole_words), tmp_path / "hf", bos_token="<|end|>", eos_token="<|end|>"
    )
    _, path = write_vocabulary(source, tmp_path / "x.gguf")
    text = read_text(open_checkpoint(path))
    again, theirs = Tokenizer.from_buffer(text.tokenizer_json), llama_encoder(path)
    rng = random.Random(5)
    pieces = [*UNITS, "<|end|>", "<tool>", "  ", "'s", "'LL", "123", "aBs", "\r\n", "/\n"]
    for _ in range(200):
        sample = "".join(rng.choices(pieces, k=rng.randint(1, 14)))
        assert again.encode(sample).ids == theirs(sample), repr(sample)
    assert not text.entry.add_bos


def test_a_pattern_whose_gaps_are_removed_is_the_same_pattern(tmp_path):
    """As the published tokenizers of some models spell it: the matches are what is left."""
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    source = save_checkpoint(byte_level(cut, False), tmp_path / "hf", eos_token="<|end|>")
    ours, path = write_vocabulary(source, tmp_path / "x.gguf")
    assert read_gguf_contents(path).metadata["tokenizer.ggml.pre"] == "qwen2"
    text = "aB's 12 \n\t中é½"
    assert ours.encode(text).ids == llama_encoder(path)(text)


def sentencepiece(*, prefix: str, trained: bool = False) -> Tokenizer:
    """Every short string over a few letters, merged in a random order, as transformers' converter
    writes SentencePiece models down; or (`trained`) with a single pair for each piece."""
    letters = [*"▁abc1.\n", "中", "é"]
    pieces = ["".join(p) for n in (1, 2, 3) for p in itertools.product(letters, repeat=n)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    ids = {token: i for i, token in enumerate(tokens)}
    longer = [piece for piece in pieces if len(piece) > 1]
    random.Random(3).shuffle(longer)
    merges = [
        (piece[:split], piece[split:])
        for piece in longer
        for split in range(1, 2 if trained else len(piece))
    ]
    model = models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    escape = normalizers.Replace(" ", "▁")
    if prefix == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), escape])
    elif prefix == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    else:  # gemma
        tokenizer.normalizer = escape
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = [AddedToken(token, special=True, normalized=False) for token in tokens[:3]]
    tokenizer.add_special_tokens([*special, AddedToken("<turn>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<b>", special=False, normalized=False)])
    return tokenizer


def write_sentencepiece(folder: Path, **settings) -> tuple[Tokenizer, Path]:
    source = save_checkpoint(
        sentencepiece(**settings), folder / "hf", bos_token="<s>", eos_token="</s>"
    )
    return write_vocabulary(source, folder / "x.gguf")


@pytest.mark.parametrize("prefix", ["prepend", "metaspace", "none"])
def test_sentencepiece_merges_become_scores(prefix, tmp_path):
    ours, path = write_sentencepiece(tmp_path, prefix=prefix)
    theirs = llama_encoder(path)
    rng = random.Random(4)
    pieces = [*" abc1.\n中é", "x", "😀", "한", "  ", "     ", "▁"]
    # After a special token "first" adds no space, and llama.cpp does.
    fixed = ["</s>", "<b>", "<turn>"] if prefix != "metaspace" else []
    for _ in range(800):
        sample = "".join(rng.choices([*pieces, *fixed], k=rng.randint(1, 16)))
        if sample[0] in " ▁" and prefix == "metaspace":
            continue  # which Metaspace takes for the space that it would add
        assert ours.encode(sample).ids == theirs(sample), repr(sample)


def of_equal_scores(runs: int) -> Tokenizer:
    """Runs of spaces, newlines and tabs up to a length, all of one score, among other pieces: as
    transformers' converter orders the pairs, by score, then by the length of the left piece."""
    marks = "▁\n\t"
    letters = [*marks, *"abc", "中"]
    words = [f"{left}{right}" for left, right in itertools.product("▁abc", "abc中")]
    equal = [mark * count for mark in marks for count in range(2, runs + 1)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += [*letters, *words, *equal]
    ids = {token: place for place, token in enumerate(tokens)}
    scores = {piece: -float(place) for place, piece in enumerate(words)}
    scores |= dict.fromkeys(equal, -5.0)
    pairs = [
        (piece[:split], piece[split:])
        for piece in scores
        for split in range(1, len(piece))
        if piece[:split] in ids and piece[split:] in ids
    ]
    pairs.sort(key=lambda pair: (scores["".join(pair)], *map(len, pair)), reverse=True)
    tokenizer = Tokenizer(
        models.BPE(ids, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokens[:3]]
    )
    return tokenizer


@pytest.mark.parametrize("runs", [2, 3, 4, 8, 16])
def test_pieces_of_equal_score_may_interleave(runs, tmp_path):
    source = save_checkpoint(of_equal_scores(runs), tmp_path / "hf", eos_token="</s>")
    merges = json.loads((source / "tokenizer.json").read_text())["model"]["merges"]
    order = ["".join(pair) for pair in merges]
    changes = sum(one != other for one, other in itertools.pairwise(order))
    assert (changes + 1 > len(set(order))) == (runs > 2), "they interleave"
    ours, path = write_vocabulary(source, tmp_path / "x.gguf")
    theirs = llama_encoder(path)
    rng = random.Random(6)
    for _ in range(600):
        parts = [rng.choice([" ", "\n", "\t", *"abc", "中"]) * rng.randint(1, 40) for _ in range(5)]
        sample = "".join(parts)
        if "<" not in sample and sample[0] != " ":
            assert ours.encode(sample).ids == theirs(sample), repr(sample)


PHI3_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>", "<|placeholder1|>")


def test_the_name_says_phi_3_where_added_tokens_swallow_whitespace(tmp_path):
    """As in Phi-3's tokenizer.json: all but <unk>, <s> and <|endoftext|> do."""
    tokenizer = sentencepiece(prefix="prepend")
    tokenizer.add_special_tokens(
        [AddedToken(PHI3_TOKENS[0], normalized=False)]
        + [AddedToken(token, rstrip=True, normalized=False) for token in PHI3_TOKENS[1:]]
    )
    folder = save_checkpoint(tokenizer, tmp_path / "hf", bos_token="<s>", eos_token="</s>")
    parts = json.loads((folder / "tokenizer.json").read_text())
    for token in parts["added_tokens"]:
        token["rstrip"] = token["rstrip"] or token["content"] in ("</s>", "<turn>", "<b>")
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    checkpoint = open_checkpoint(folder)
    name = model_name(checkpoint, read_text(checkpoint))
    assert name == "hf (phi-3)"
    ours, path = write_vocabulary(folder, tmp_path / "x.gguf", name=name)
    theirs = llama_encoder(path)
    for token in (*PHI3_TOKENS, "</s>", "<turn>", "<s>"):
        for sample in (f"a{token} b", f"{token}\n\n a{token}{token}  c", f"ab {token}\t\tc"):
            assert ours.encode(sample).ids == theirs(sample), repr(sample)
    again = Tokenizer.from_buffer(read_text(open_checkpoint(path)).tokenizer_json)
    assert again.encode("a<|user|>\n b<s> c").ids == theirs("a<|user|>\n b<s> c")


def test_merges_that_no_scores_can_say_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"do not merge to .* llama\.cpp would merge them"):
        write_sentencepiece(tmp_path, prefix="none", trained=True)


def test_special_tokens_and_template_are_stored(tmp_path):
    source = save_checkpoint(
        byte_level(PLAIN, False),
        tmp_path / "hf",
        bos_token="<|end|>",
        eos_token="<|end|>",
        add_bos_token=True,
        chat_template="{{ messages }}",
    )
    (source / "generation_config.json").write_text('{"eos_token_id": [0, 5]}')
    tokenizer, path = write_vocabulary(source, tmp_path / "x.gguf", extra=2)
    found = read_gguf_contents(path).metadata
    end, tool = (tokenizer.token_to_id(token) for token in ("<|end|>", "<tool>"))
    assert found["tokenizer.chat_template"] == "{{ messages }}"
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.add_bos_token"]) == (
        end,
        True,
    )
    assert found["tokenizer.ggml.eos_token_id"] == end
    assert found["tokenizer.ggml.eot_token_id"] == 0
    assert found["tokenizer.ggml.tokens"][-2:] == [f"[PAD{tool + 1}]", f"[PAD{tool + 2}]"]
    assert found["tokenizer.ggml.token_type"][end:] == [3, 4, 5, 5]


def changed(folder: Path, **parts) -> Path:
    source = save_checkpoint(byte_level(PLAIN, False), folder / "hf", eos_token="<|end|>")
    path = source / "tokenizer.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **parts}))
    return source


UNKNOWN = {
    "a cut": (
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"Regex": "[xyz]+"},
                        "behavior": "Isolated",
                        "invert": False,
                    },
                    {
                        "type": "ByteLevel",
                        "add_prefix_space": False,
                        "trim_offsets": True,
                        "use_regex": False,
                    },
                ],
            }
        },
        r"\['\[xyz\]\+'\].*gpt-2, smollm",
    ),
    "a normalizer": ({"normalizer": {"type": "Lowercase"}}, "normalizer.*Lowercase"),
    "a pre-tokenizer": ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer.*Whitespace"),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_llama_cpp_has_not_is_named(what, tmp_path):
    parts, message = UNKNOWN[what]
    source = changed(tmp_path, **parts)
    with pytest.raises(CheckpointError, match=message):
        write_vocabulary(source, tmp_path / "x.gguf")


def test_more_tokens_than_the_embedding_has_rows_are_refused(tmp_path):
    source = changed(tmp_path)
    with pytest.raises(CheckpointError, match=r"has the id .*; the embedding has"):
        write_vocabulary(source, tmp_path / "x.gguf", extra=-1)


@pytest.mark.parametrize("model", ["smollm2_gguf", "qwen_coder_gguf"])
def test_a_gguf_s_vocabulary_is_taken_over_as_it_is(model, request, tmp_path):
    source = request.getfixturevalue(model)
    _, path = write_vocabulary(source, tmp_path / "x.gguf")
    old, new = read_gguf_contents(source).metadata, read_gguf_contents(path).metadata
    keys = [key for key in old if key.startswith("tokenizer.")]
    assert len(keys) > 6
    assert {key: new[key] for key in keys} == {key: old[key] for key in keys}
    text = "It's 12345 déjà vu…\r\n\t<|im_start|>user\n中文 한국어 😀<|im_end|>"
    assert llama_encoder(path)(text) == llama_encoder(source)(text)
