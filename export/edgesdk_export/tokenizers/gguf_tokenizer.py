"""Build a `tokenizer.json` from GGUF metadata that gives llama.cpp's ids.

Byte-level BPE (tokenizer model "gpt2"): how a text is cut before merging is not in the file; its
name is (`tokenizer.ggml.pre`). The patterns are those of llama.cpp's `llm_tokenizer_bpe`: in
contrast to the original tokenizers there is no Unicode normalization, and contractions ignore ASCII
case only.

SentencePiece BPE (tokenizer model "llama": Llama 2, Mistral, Gemma, Phi-3) merges the pair whose
joint piece has the best score; written as a merge list, that is every split of every piece into two
pieces, best score first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edgesdk.errors import CheckpointError
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.tokenizers.ends import named_ends, turn_end
from edgesdk_export.tokenizers.gguf_vocabulary import (
    GgufVocabulary,
    TokenKind,
    add_fixed_tokens,
    read_gguf_vocabulary,
)
from edgesdk_export.tokenizers.text_files import TextFiles, make_entry

_SPACE = "▁"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{TAIL}"
_QWEN2 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{TAIL}"
_QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SLASHED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Letters outside ASCII count as both small and capital, and combining marks as neither.
_CAPITAL, _SMALL = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITAL}*{_SMALL}+"
_CAPITALS = rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITAL}+{_SMALL}*"
_TEKKEN = rf"{_CASED}|{_CAPITALS}|\p{{N}}|{SLASHED_TAIL}"
_GPT4O = (
    rf"{_CASED}(?:{CONTRACTIONS})?|{_CAPITALS}(?:{CONTRACTIONS})?|\p{{N}}{{1,3}}|{SLASHED_TAIL}"
)


@dataclass(frozen=True)
class _CutRule:
    """A way to cut a text: by each pattern in turn.

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

# The names that GGUF files carry in `tokenizer.ggml.pre`, as `llama_vocab::impl::load` reads them.
_NAMES: Mapping[_CutRule, tuple[str, ...]] = {
    _PLAIN: ("gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion", "exaone4", "gigachat", "mellum"),
    _DIGITWISE: ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    _LLAMA_3: (
        *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    ),
    _CutRule((_LLAMA3,)): ("smaug-bpe", "dbrx", "glm4", "chatglm-bpe"),
    _QWEN_2: (
        *("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "grok-2", "solar-open"),
    ),
    _CutRule((_QWEN35,)): ("qwen35",),
    _CutRule((_TEKKEN,), whole_words=True, add_bos=True): ("tekken",),
    _CutRule((_GPT4O,)): ("gpt-4o", "llama4", "kanana2"),
    _CutRule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")): ("default",),
}
CUT_RULES = {name: rule for rule, names in _NAMES.items() for name in names}


def read_gguf_text(checkpoint: Checkpoint) -> TextFiles:
    """Build a `tokenizer.json` that encodes every text as llama.cpp does.

    Raises:
        CheckpointError: the kind of tokenizer is not supported.
        DamagedCheckpoint: its parts contradict each other.
    """
    vocabulary = read_gguf_vocabulary(checkpoint)
    kind, named = vocabulary.values.get("model"), checkpoint.config.get("general.name")
    name = named if isinstance(named, str) else None
    if kind == "gpt2":
        tokenizer = build_byte_bpe(vocabulary, model_name=name)
        add_bos = byte_bpe_adds_bos(vocabulary)
    elif kind == "llama":
        tokenizer = build_sentencepiece_bpe(vocabulary, model_name=name)
        add_bos = sentencepiece_adds_bos(vocabulary)
    else:
        raise CheckpointError(
            f"{checkpoint.path}: the tokenizer model {kind!r} is not supported; 'gpt2' (byte-level "
            "BPE) and 'llama' (SentencePiece BPE) are.",
            hint="Export from the original safetensors folder, which has a tokenizer.json.",
        )

    template = _text(checkpoint.config.get("tokenizer.chat_template"))
    tool_template = _text(checkpoint.config.get("tokenizer.chat_template.tool_use"))
    bos, eos = _token_of(vocabulary, "bos"), _token_of(vocabulary, "eos")
    named = {name: _token_of(vocabulary, key) for name, key in NAMED_KEYS.items()}
    variables = {name: token for name, token in named.items() if token is not None}
    entry = make_entry(
        chat_template=template,
        tool_template=tool_template,
        add_bos=add_bos and bos is not None,
        bos=(bos, vocabulary.special_id("bos")),
        eos_token=eos,
        eos_ids=_end_ids(vocabulary, template, {**variables, "bos_token": bos, "eos_token": eos}),
        special_tokens=variables,
    )
    return TextFiles(tokenizer.to_str().encode(), template, entry, tool_template)


# The names that templates know, and those of the metadata.
NAMED_KEYS = {
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}
# llama.cpp ends an answer at all of these. The last three are of fill-in-the-middle.
_END_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")


def _end_ids(
    vocabulary: GgufVocabulary, template: str | None, variables: Mapping[str, str | None]
) -> list[int]:
    settings = [vocabulary.special_id(key) for key in _END_KEYS]
    special = {
        token: i
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind == TokenKind.CONTROL
    }
    end = special.get(turn_end(template, special, variables) or "")
    return [i for i in (*settings, end) if i is not None] + named_ends(special)


def _token_of(vocabulary: GgufVocabulary, key: str) -> str | None:
    token = vocabulary.special_id(key)
    return None if token is None else vocabulary.tokens[token]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def byte_bpe_adds_bos(vocabulary: GgufVocabulary) -> bool:
    """Whether prompts begin with BOS."""
    return vocabulary.flag("add_bos_token", _cut_of(vocabulary).add_bos)


def build_byte_bpe(vocabulary: GgufVocabulary, *, model_name: str | None) -> Tokenizer:
    """A tokenizer that gives llama.cpp's ids. `model_name` is the metadata's `general.name`.

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
    add_fixed_tokens(tokenizer, vocabulary, model_name=model_name)
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


def sentencepiece_adds_bos(vocabulary: GgufVocabulary) -> bool:
    """Whether prompts begin with BOS; they do unless the metadata denies it."""
    return vocabulary.flag("add_bos_token", True)


def build_sentencepiece_bpe(vocabulary: GgufVocabulary, *, model_name: str | None) -> Tokenizer:
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
    add_fixed_tokens(tokenizer, vocabulary, model_name=model_name)
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
