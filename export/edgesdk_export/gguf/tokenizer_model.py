"""Express a `tokenizer.json` in the terms of llama.cpp's two BPE tokenizers.

Byte-level BPE: a GGUF names its pre-tokenizer (`tokenizer.ggml.pre`) and llama.cpp has the code.
llama.cpp's converter finds the name by hashing the ids of a sample text; here the parts of
`tokenizer.json` are compared with those of the published tokenizers, so that an unknown one can be
shown. Names and what each one implies: `llama_vocab::impl::load` in llama.cpp's
src/llama-vocab.cpp. Its own patterns for "tekken" and "gpt-4o" cut combining marks off their
letters; the others are exact.

SentencePiece BPE: llama.cpp merges the two neighbours whose joint piece has the best score, and
`tokenizer.json` has a list of pairs, best first. The two agree where every two pieces that make up
a third are a pair, and the pairs of one piece stand together in the list, as transformers'
converter leaves them. Pairs of pieces of equal score (runs of spaces) it sorts by length, so that
they interleave: there the longest run comes first in both. The self-test compares the ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgesdk.errors import CheckpointError
from edgesdk_export.tokenizers.gguf_tokenizer import CONTRACTIONS, SLASHED_TAIL, TAIL, WORDS

_SPACE = "▁"
_HINT = "Export to ONNX instead, or from a GGUF of this model."
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_CAPITAL = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# The same in two spellings: with a flag, and with each letter in both cases.
_CONTRACTIONS = (_SHORT, CONTRACTIONS)


@dataclass(frozen=True)
class _KnownPreTokenizer:
    """A pre-tokenizer that llama.cpp has.

    Attributes:
        name: what it calls it.
        cut: the parts that cut, as `_cuts` gives them.
        whole_words: whether a piece that is a token is taken without merging.
    """

    name: str
    cut: tuple[str, ...]
    whole_words: bool = False


_KNOWN = (
    _KnownPreTokenizer("gpt-2", ("byte-level words",)),
    _KnownPreTokenizer("smollm", ("each digit", "byte-level words")),
    *(
        known
        for short in _CONTRACTIONS
        for known in (
            _KnownPreTokenizer(
                "llama-bpe", (rf"{short}|{WORDS}|\p{{N}}{{1,3}}|{TAIL}",), whole_words=True
            ),
            _KnownPreTokenizer("smaug-bpe", (rf"{short}|{WORDS}|\p{{N}}{{1,3}}|{TAIL}",)),
            _KnownPreTokenizer("qwen2", (rf"{short}|{WORDS}|\p{{N}}|{TAIL}",)),
        )
    ),
    _KnownPreTokenizer(
        "tekken", (rf"{_CASED}|{_CAPITAL}|\p{{N}}|{SLASHED_TAIL}",), whole_words=True
    ),
    _KnownPreTokenizer(
        "gpt-4o",
        (rf"{_CASED}{_SHORT}?|{_CAPITAL}{_SHORT}?|\p{{N}}{{1,3}}|{SLASHED_TAIL}",),
    ),
)


def pre_tokenizer_name(parts: Mapping[str, Any], *, where: str) -> str:
    """llama.cpp's name for how a byte-level `tokenizer.json` cuts a text.

    Args:
        parts: the parsed `tokenizer.json`.

    Raises:
        CheckpointError: llama.cpp has nothing that cuts like it.
    """
    cut = _cuts(parts, where=where)
    whole_words = bool(parts["model"].get("ignore_merges"))
    for known in _KNOWN:
        if known.cut == cut and known.whole_words == whole_words:
            return known.name
    how = "" if whole_words else "not "
    raise CheckpointError(
        f"{where}: no pre-tokenizer of llama.cpp is known that cuts as this one does: "
        f"{list(cut)}, whole words {how}taken without merging. Known are "
        f"{', '.join(dict.fromkeys(known.name for known in _KNOWN))}.",
        hint=_HINT,
    )


def piece_scores(
    ids: Mapping[str, int], merges: Sequence[tuple[str, str]], size: int, *, where: str
) -> npt.NDArray[np.float32]:
    """A score for each id [size]: merged pieces from 0 down, then those that nothing merges to.

    Raises:
        CheckpointError: no scores say what the merges say.
    """
    order = list(dict.fromkeys(left + right for left, right in merges))
    pairs = dict.fromkeys(merges)
    for piece in order:
        for split in range(1, len(piece)):
            left, right = piece[:split], piece[split:]
            if left in ids and right in ids and (left, right) not in pairs:
                raise CheckpointError(
                    f"{where}: {left!r} and {right!r} do not merge to {piece!r}, which is a token; "
                    "llama.cpp would merge them.",
                    hint=_HINT,
                )
    scores = np.full(size, -float(len(order)), np.float32)
    for rank, piece in enumerate(order):
        scores[ids[piece]] = -float(rank)
    return scores


def adds_space_prefix(parts: Mapping[str, Any], *, where: str) -> bool:
    """Tell whether a text gets a space in front of it.

    Raises:
        CheckpointError: the text is changed or cut in a way that llama.cpp does not know.
    """
    prefix = False
    for step in _steps(parts.get("normalizer"), "normalizers"):
        if step.get("type") == "Prepend" and step.get("prepend") == _SPACE:
            prefix = True
        elif step.get("type") != "Replace" or step.get("content") != _SPACE:
            raise _unknown(where, "normalizer", step)
    for step in _steps(parts.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace" and not step.get("split", True):
            prefix = prefix or step.get("prepend_scheme") in ("first", "always")
        # Spaces are replaced before, so that Gemma's finds none.
        elif step.get("type") != "Split" or step.get("pattern") != {"String": " "}:
            raise _unknown(where, "pre-tokenizer", step)
    return prefix


def _cuts(parts: Mapping[str, Any], *, where: str) -> tuple[str, ...]:
    """List what cuts a text, in order: regular expressions, and fixed ways by name."""
    normalizer = parts.get("normalizer")
    # llama.cpp normalizes nothing; NFC leaves nearly every text that people type as it is.
    if normalizer is not None and not _is_nfc(normalizer):
        raise _unknown(where, "normalizer", normalizer)
    steps = _steps(parts.get("pre_tokenizer"), "pretokenizers")
    cuts: list[str] = []
    byte_level = False
    for step in steps:
        kind = step.get("type")
        if kind == "ByteLevel" and not step.get("add_prefix_space"):
            byte_level = True
            if step.get("use_regex", True):
                cuts.append("byte-level words")
        elif kind == "Digits" and step.get("individual_digits"):
            cuts.append("each digit")
        elif kind == "Split" and _keeps_matches(step):
            pattern = step.get("pattern", {})
            cuts.append(str(pattern.get("Regex", pattern)))
        else:
            raise _unknown(where, "pre-tokenizer", step)
    if not byte_level:
        raise _unknown(where, "pre-tokenizer", parts.get("pre_tokenizer"))
    return tuple(cuts)


def _keeps_matches(split: Mapping[str, Any]) -> bool:
    """Whether the pieces are the pattern's matches, in either spelling. The known patterns match
    every character, so that nothing is between matches."""
    how = split.get("behavior"), bool(split.get("invert"))
    return how in (("Isolated", False), ("Removed", True))


def _is_nfc(normalizer: Mapping[str, Any]) -> bool:
    return all(step.get("type") == "NFC" for step in _steps(normalizer, "normalizers"))


def _steps(part: Any, key: str) -> list[Mapping[str, Any]]:
    """A part of `tokenizer.json` as the list of its steps."""
    if not isinstance(part, dict):
        return []
    return list(part.get(key, [])) if part.get("type") == "Sequence" else [part]


def _unknown(where: str, what: str, found: Any) -> CheckpointError:
    return CheckpointError(
        f"{where}: llama.cpp has nothing for this {what}: {json.dumps(found)[:300]}.",
        hint=_HINT,
    )
