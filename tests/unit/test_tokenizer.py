from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from edgesdk.bundle.manifest import TokenizerEntry
from edgesdk.errors import DamagedBundle, InvalidText, UnsupportedBundle
from edgesdk.text.tokenizer import BundleTokenizer

_CORPUS = ["the cat sat on the mat", "naïve café", "中文字符", "def f(x):\n    return x\n"] * 3
_ENTRY = TokenizerEntry(add_bos=True, bos_token="<s>", bos_token_id=0, eos_token_ids=(1,))


def _byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_tokens(["<think> é"])
    return tokenizer


def _sentencepiece() -> tokenizers.Tokenizer:
    """As Gemma's: spaces as U+2581, other characters as bytes."""
    pieces = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({*"▁".join(_CORPUS).replace(" ", "▁")} - {"中"})
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *letters, "▁c", "▁▁"])}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, [("▁", "c"), ("▁", "▁")], byte_fallback=True)
    )
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


@pytest.fixture(scope="module", params=[_byte_level, _sentencepiece], ids=["byte", "spm"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    request.param().save(str(path))
    return BundleTokenizer(path, _ENTRY)


@given(text=st.text().filter(lambda text: "▁" not in text))
def test_the_bytes_of_a_texts_tokens_are_the_texts_bytes(
    tokenizer: BundleTokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)

    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


def test_special_tokens_in_the_text_become_ids_and_show_no_text(
    tokenizer: BundleTokenizer,
) -> None:
    ids = tokenizer.encode("<s>cat</s>")

    assert (ids[0], ids[-1]) == (0, 1)
    assert b"".join(map(tokenizer.token_bytes, ids)) == b"cat"


def test_bos_is_put_in_front_on_request(tokenizer: BundleTokenizer) -> None:
    assert tokenizer.encode("cat", add_bos=True) == [0, *tokenizer.encode("cat")]


def test_a_lone_surrogate_is_named_with_its_position(tokenizer: BundleTokenizer) -> None:
    with pytest.raises(InvalidText, match="position 3"):
        tokenizer.encode("cat\udc80")


def test_an_id_that_only_pads_the_logits_has_no_text(tokenizer: BundleTokenizer) -> None:
    assert tokenizer.token_bytes(tokenizer.vocab_size + 5) == b""


def test_an_added_token_that_is_no_control_token_shows_its_text(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    _byte_level().save(str(path))
    tokenizer = BundleTokenizer(path, _ENTRY)
    ids = tokenizer.encode("<think> é")

    assert [tokenizer.token_bytes(token) for token in ids] == ["<think> é".encode()]


def test_truncation_padding_and_postprocessing_in_the_file_are_not_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    source = _byte_level()
    source.enable_truncation(4)
    source.enable_padding(length=64)
    source.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    source.save(str(path))
    tokenizer = BundleTokenizer(path, _ENTRY)
    text = "the cat sat on the mat, and so on"

    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()
    assert 0 not in tokenizer.encode(text)


def test_a_file_that_is_no_tokenizer_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": 3}')

    with pytest.raises(DamagedBundle, match="not a tokenizer"):
        BundleTokenizer(path, _ENTRY)


def test_a_manifest_that_names_a_missing_token_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    _byte_level().save(str(path))

    with pytest.raises(DamagedBundle, match="no token 99999"):
        BundleTokenizer(path, TokenizerEntry(eos_token_ids=(99999,)))


_WORDS = ["[UNK]", "the", "cat", "sat", "##s", "on", "mat", "."]
_TEXT = "the cats sat on the mat ."


def _word_level() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.WordLevel(_ids([*_WORDS, "cats"]), unk_token="[UNK]"))


def _word_piece() -> tokenizers.Tokenizer:
    source = tokenizers.Tokenizer(models.WordPiece(_ids(_WORDS), unk_token="[UNK]"))
    source.decoder = decoders.WordPiece(cleanup=False)
    return source


def _suffixed() -> tokenizers.Tokenizer:
    letters = sorted(set(_TEXT) - {" "})
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "th", "the</w>"]
    merges = [("t", "h"), ("th", "e</w>")]
    model = models.BPE(_ids(tokens), merges, end_of_word_suffix="</w>")
    source = tokenizers.Tokenizer(model)
    source.decoder = decoders.BPEDecoder()
    return source


def _unigram_words() -> tokenizers.Tokenizer:
    pieces = [(word, -float(place)) for place, word in enumerate([*_WORDS, "cats"])]
    return tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))


def _unigram_pieces() -> tokenizers.Tokenizer:
    pieces = [(word, -1.0) for word in ["<unk>", "▁the", "▁cat", "s", "▁s", "at", "▁", *".omn"]]
    source = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    source.pre_tokenizer = pre_tokenizers.Metaspace()
    source.decoder = decoders.Metaspace()
    return source


def _ids(tokens: list[str]) -> dict[str, int]:
    return {token: place for place, token in enumerate(tokens)}


@pytest.mark.parametrize(
    "make", [_word_level, _word_piece, _suffixed, _unigram_words, _unigram_pieces]
)
def test_words_and_pieces_of_words_spell_the_text(make: Any, tmp_path: Path) -> None:
    source = make()
    if source.pre_tokenizer is None:
        source.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    source.save(str(path))
    tokenizer = BundleTokenizer(path, TokenizerEntry())
    ids = tokenizer.encode(_TEXT)
    spelled = b"".join(map(tokenizer.token_bytes, ids)).decode()

    assert spelled.strip() == source.decode(ids).strip() == _TEXT


def test_a_tokenizer_of_speech_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    source = _word_level()
    source.decoder = decoders.CTC()
    source.save(str(path))

    with pytest.raises(UnsupportedBundle, match="speech"):
        BundleTokenizer(path, TokenizerEntry())
