"""Byte-level BPE from GGUF metadata (tokenizer model "gpt2").

How a text is cut before merging is not in the file; its name is (`tokenizer.ggml.pre`). The
patterns are those of llama.cpp's `llm_tokenizer_bpe`, so that ids equal llama.cpp's: in contrast
to the original tokenizers there is no Unicode normalization, and contractions ignore ASCII case
only.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from edgesdk.errors import CheckpointError
from edgesdk_export.tokenizers.gguf_vocabulary import GgufVocabulary, add_fixed_tokens

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{TAIL}"
_QWEN2 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{TAIL}"


@dataclass(frozen=True)
class _CutRule:
    """How a text is cut: by each pattern in turn.

    Attributes:
        whole_words: a piece that is a token is taken as it is, without merging.
        add_bos: whether prompts begin with BOS, unless the metadata says so itself.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False


_DIGITWISE = _CutRule((r"\p{N}", _GPT2))
_PLAIN = _CutRule((_GPT2,))
_LLAMA_3 = _CutRule((_LLAMA3,), whole_words=True, add_bos=True)
_QWEN_2 = _CutRule((_QWEN2,))

# By the name that GGUF files carry in `tokenizer.ggml.pre`.
CUT_RULES = {
    "gpt-2": _PLAIN,
    "phi-2": _PLAIN,
    "olmo": _PLAIN,
    "smollm": _DIGITWISE,
    "starcoder": _DIGITWISE,
    "refact": _DIGITWISE,
    "command-r": _DIGITWISE,
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "llama-v3": _LLAMA_3,
    "smaug-bpe": _CutRule((_LLAMA3,)),
    "qwen2": _QWEN_2,
    "deepseek-r1-qwen": _QWEN_2,
    "stablelm2": _QWEN_2,
    "default": _CutRule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}


def byte_bpe_adds_bos(vocabulary: GgufVocabulary) -> bool:
    """Whether prompts begin with BOS."""
    return vocabulary.flag("add_bos_token", _cut_of(vocabulary).add_bos)


def build_byte_bpe(vocabulary: GgufVocabulary) -> Tokenizer:
    """A tokenizer that gives llama.cpp's ids.

    Raises:
        CheckpointError: the way that texts are cut has a name that is not known here.
        DamagedCheckpoint: a merge names what is no token.
    """
    cut = _cut_of(vocabulary)
    merges = [_parse_merge(vocabulary, merge) for merge in vocabulary.strings("merges")]
    try:
        model = models.BPE(vocabulary.ids, merges, ignore_merges=cut.whole_words)
    except Exception as error:  # the library raises bare Exceptions
        raise vocabulary.damaged(f"the merges do not fit the tokens: {error}") from None
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    add_fixed_tokens(tokenizer, vocabulary)
    return tokenizer


def _cut_of(vocabulary: GgufVocabulary) -> _CutRule:
    name = vocabulary.values.get("pre")
    cut = CUT_RULES.get(name) if isinstance(name, str) else None
    if cut is None:
        raise CheckpointError(
            f"{vocabulary.where}: the pre-tokenizer {name!r} is not known; known are "
            f"{', '.join(sorted(CUT_RULES))}.",
            hint="Export from the original safetensors folder, which has a tokenizer.json.",
        )
    return cut


def _parse_merge(vocabulary: GgufVocabulary, merge: str) -> tuple[str, str]:
    # The space that parts a pair is never the first character.
    middle = merge.find(" ", 1)
    if middle < 0:
        raise vocabulary.damaged(f"the merge {merge!r} is no pair")
    return merge[:middle], merge[middle + 1 :]
