"""SentencePiece BPE in `tokenizer.json`, as llama.cpp wants it: a score for every piece.

llama.cpp merges the two neighbours whose joint piece has the best score; `tokenizer.json` has a
list of pairs, best first. The two agree where the pairs of one piece stand together in the list and
every two pieces that make up a third are a pair, as transformers' converter leaves them; a list
that was trained as one says something else, which no scores can say.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgesdk.errors import CheckpointError

_SPACE = "▁"
_HINT = "Export to ONNX instead, or from a GGUF of this model."


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
    changes = sum(
        left + right != later[0] + later[1] for (left, right), later in itertools.pairwise(merges)
    )
    if changes + 1 > len(order):
        raise CheckpointError(
            f"{where}: the merges are not ordered by the pieces they make, as llama.cpp has it.",
            hint=_HINT,
        )
    scores = np.full(size, -float(len(order)), np.float32)
    for rank, piece in enumerate(order):
        scores[ids[piece]] = -float(rank)
    return scores


def adds_space_prefix(parts: Mapping[str, Any], *, where: str) -> bool:
    """Whether a text gets a space in front of it.

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


def _steps(part: Any, key: str) -> list[Mapping[str, Any]]:
    if not isinstance(part, dict):
        return []
    return list(part.get(key, [])) if part.get("type") == "Sequence" else [part]


def _unknown(where: str, what: str, found: Any) -> CheckpointError:
    return CheckpointError(f"{where}: llama.cpp has nothing for this {what}: {found}.", hint=_HINT)
