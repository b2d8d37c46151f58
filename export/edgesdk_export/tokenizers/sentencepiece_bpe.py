"""SentencePiece BPE from GGUF metadata (tokenizer model "llama": Llama 2, Mistral, Gemma, Phi-3).

SentencePiece merges the pair whose joint piece has the best score; written as a merge list, that
is every split of every piece into two pieces, best score first.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers

from edgesdk_export.tokenizers.gguf_vocabulary import GgufVocabulary, TokenKind, add_fixed_tokens

_SPACE = "▁"
_PHI3_KEEPS_SPACE = frozenset(("<unk>", "<s>", "<|endoftext|>"))


def sentencepiece_adds_bos(vocabulary: GgufVocabulary) -> bool:
    """Whether prompts begin with BOS; they do unless the metadata denies it."""
    return vocabulary.flag("add_bos_token", True)


def build_sentencepiece_bpe(vocabulary: GgufVocabulary, *, model_name: str) -> Tokenizer:
    """A tokenizer that gives llama.cpp's ids. `model_name` is the metadata's `general.name`.

    Raises:
        DamagedCheckpoint: the scores do not match the tokens, or there is no unknown token.
    """
    scores = vocabulary.values.get("scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise vocabulary.damaged(f"scores do not match the {len(vocabulary.tokens):,} tokens")
    unknown = vocabulary.special_id("unknown")
    if unknown is None:
        unknown = next((i for i, k in enumerate(vocabulary.kinds) if k == TokenKind.UNKNOWN), None)
    if unknown is None:
        raise vocabulary.damaged("there is no unknown token")

    tokenizer = Tokenizer(
        models.BPE(
            vocabulary.ids,
            _merges(vocabulary, scores),
            unk_token=vocabulary.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    escape = normalizers.Replace(" ", _SPACE)
    unescape = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.flag("add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), escape])
        tokenizer.decoder = decoders.Sequence([*unescape, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = escape
        tokenizer.decoder = decoders.Sequence(unescape)
    # llama.cpp, too, knows from the name alone that these models' tokens eat whitespace.
    phi3 = any(mark in model_name.lower() for mark in ("phi-3", "phi3"))
    add_fixed_tokens(tokenizer, vocabulary, rstrip_but=_PHI3_KEEPS_SPACE if phi3 else None)
    return tokenizer


def _merges(vocabulary: GgufVocabulary, scores: list[float]) -> list[tuple[str, str]]:
    ids = vocabulary.ids
    pairs = [
        (-scores[i], i, split, token)
        for token, i in ids.items()
        for split in range(1, len(token))
        if token[:split] in ids and token[split:] in ids
    ]
    pairs.sort()
    return [(token[:split], token[split:]) for _, _, split, token in pairs]
