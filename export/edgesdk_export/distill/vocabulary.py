"""Trim a model's vocabulary to the tokens that its data uses.

Embedding and head are a large part of a small model, a fifth of SmolLM2-135M. What stays is every
token of the data, the tokens that those are merged from, single bytes, and all special tokens. So
the data is cut into the same tokens as before, and any other text into smaller ones.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgesdk.errors import RequestError, TrainingError
from edgesdk_export.distill.divergence import TeacherTokens
from edgesdk_export.distill.samples import Sample
from edgesdk_export.distill.teachers import Teacher, likeliest

# The ids of tokens in a configuration: numbers, or lists of them.
_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class TrimmedVocabulary:
    """A vocabulary with some of its tokens left out.

    Attributes:
        kept: the numbers that the tokens left had before, in rising order; a token's new number is
            its place here.
        tokenizer_json: the tokenizer with the new numbers.
    """

    kept: tuple[int, ...]
    tokenizer_json: bytes

    def renumbered(self, samples: Sequence[Sample]) -> list[Sample]:
        """Samples of the data with the new numbers."""
        new = {old: place for place, old in enumerate(self.kept)}
        return [Sample(tuple(new[old] for old in sample.ids), sample.prompt) for sample in samples]


def trim_vocabulary(tokenizer_json: bytes, samples: Iterable[Sample]) -> TrimmedVocabulary:
    """Leave out the tokens that samples do not need.

    Raises:
        RequestError: the tokenizer does not merge pairs (BPE), so a token may stand for no others.
    """
    settings = json.loads(tokenizer_json)
    model = settings["model"]
    if model.get("type") != "BPE":
        raise RequestError(
            f"A vocabulary of the kind {model.get('type')} cannot be trimmed.",
            hint="Leave vocabulary out of [student].",
        )
    vocabulary: dict[str, int] = model["vocab"]
    merges = [tuple(_pair(merge)) for merge in model["merges"]]
    added = {token["id"]: token["content"] for token in settings["added_tokens"]}
    tokens = {number: token for token, number in vocabulary.items()}
    used = {number for sample in samples for number in sample.ids}
    wanted = {tokens[number] for number in used if number in tokens}
    # Where bytes stand in for characters that have no token, those need none either.
    falls_back = bool(model.get("byte_fallback"))
    wanted |= {
        token for token in vocabulary if _is_byte(token) or (len(token) == 1 and not falls_back)
    }
    wanted |= {token for token in (model.get("unk_token"),) if token in vocabulary}
    wanted |= set(added.values()) & set(vocabulary)
    _add_parts(wanted, merges)
    kept = sorted({vocabulary[token] for token in wanted} | set(added))
    new = {old: place for place, old in enumerate(kept)}
    model["vocab"] = {tokens[old]: new[old] for old in kept if old in tokens}
    model["merges"] = [
        merge
        for merge, (first, second) in zip(model["merges"], merges, strict=True)
        if first in wanted and second in wanted and first + second in wanted
    ]
    settings["added_tokens"] = [
        token | {"id": new[token["id"]]} for token in settings["added_tokens"]
    ]
    _renumber_template(settings.get("post_processor"), new)
    return TrimmedVocabulary(tuple(kept), json.dumps(settings, ensure_ascii=False).encode())


def trim_model(model: Any, vocabulary: TrimmedVocabulary) -> Any:
    """A model of the same class with the kept rows of embedding and head."""
    kept = torch.tensor(vocabulary.kept, device=model.device)
    config = copy.deepcopy(model.config)
    config.vocab_size = len(kept)
    _renumber_ids(config, vocabulary)
    trimmed = type(model)(config)
    rows = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    of_tokens = {
        name
        for name, weight in model.named_parameters(remove_duplicate=False)
        if id(weight) in rows
    }
    trimmed.load_state_dict(
        {
            name: value[kept] if name in of_tokens else value
            for name, value in model.state_dict().items()
        }
    )
    # With the old numbers, as in the file that a checkpoint has: `write_text_side` changes both.
    trimmed.generation_config = copy.deepcopy(model.generation_config)
    return trimmed.eval()


def _renumber_ids(settings: Any, vocabulary: TrimmedVocabulary) -> None:
    """Give the ids in a configuration their new numbers."""
    new = {old: place for place, old in enumerate(vocabulary.kept)}
    for key in _ID_KEYS:
        value = getattr(settings, key, None)
        if isinstance(value, int):
            setattr(settings, key, new.get(value))
        elif isinstance(value, Sequence):
            setattr(settings, key, [new[old] for old in value if old in new])


def write_text_side(folder: Path, vocabulary: TrimmedVocabulary) -> None:
    """Give the files of a trimmed model's checkpoint the new numbers, but for `config.json`, which
    has them."""
    (folder / "tokenizer.json").write_bytes(vocabulary.tokenizer_json)
    new = {str(old): str(place) for place, old in enumerate(vocabulary.kept)}
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        if "added_tokens_decoder" in settings:
            known = settings["added_tokens_decoder"]
            settings["added_tokens_decoder"] = {
                new[old]: token for old, token in known.items() if old in new
            }
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    path = folder / "generation_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        for key in _ID_KEYS:
            value = settings.get(key)
            if isinstance(value, int):
                settings[key] = vocabulary.kept.index(value)
            elif isinstance(value, list):
                settings[key] = [vocabulary.kept.index(old) for old in value]
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


class TrimmedTeacher:
    """A teacher with the whole vocabulary, for a student with a part of it.

    Its distributions are those given that one of the kept tokens comes next: what is nearest to the
    teacher among all that the student can say. The others' mass belongs to no token of the student.
    """

    def __init__(self, teacher: Teacher, vocabulary: TrimmedVocabulary) -> None:
        self._teacher = teacher
        self._kept = torch.tensor(vocabulary.kept)
        self._old = vocabulary.kept
        self._digest = hashlib.sha256(repr(vocabulary.kept).encode()).hexdigest()

    @property
    def identity(self) -> str:
        return f"{self._teacher.identity}, of {len(self._old)} tokens {self._digest}"

    @property
    def vocab_size(self) -> int:
        return len(self._old)

    @property
    def most_tokens(self) -> int:
        return self.vocab_size

    def tokens(self, ids: Sequence[int], k: int) -> TeacherTokens:
        """See `Teacher.tokens`.

        Raises:
            TrainingError: the teacher does not give the probabilities of all tokens.
        """
        whole = self._teacher.vocab_size
        found = self._teacher.tokens([self._old[number] for number in ids], whole)
        if found.ids.shape[-1] < whole:
            raise TrainingError(
                "The teacher gives the probabilities of some tokens only; a student with a trimmed"
                " vocabulary needs those of all that it has.",
                hint="Leave vocabulary out of [student], or take a teacher that runs here.",
            )
        logits = torch.empty_like(found.log_probs).scatter(-1, found.ids, found.log_probs)
        return likeliest(logits[:, self._kept.to(logits.device)], k)


def _pair(merge: str | Sequence[str]) -> Sequence[str]:
    """The two sides of a merge; older files write them with a space between."""
    return merge.split(" ") if isinstance(merge, str) else merge


def _is_byte(token: str) -> bool:
    """Whether a token is a byte that stands for what has no token: "<0x0A>"."""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _add_parts(wanted: set[str], merges: Sequence[Sequence[str]]) -> None:
    """Add what wanted tokens are merged from, and what that is merged from."""
    sides: dict[str, list[str]] = {}
    for first, second in merges:
        sides.setdefault(first + second, []).extend((first, second))
    open_tokens = list(wanted)
    while open_tokens:
        for part in sides.get(open_tokens.pop(), ()):
            if part not in wanted:
                wanted.add(part)
                open_tokens.append(part)


def _renumber_template(processor: Any, new: Mapping[int, int]) -> None:
    """Give the special tokens of a post-processor their new numbers, in place."""
    if isinstance(processor, dict):
        for token in processor.get("special_tokens", {}).values():
            if isinstance(token, dict):
                token["ids"] = [new[old] for old in token["ids"]]
        for inner in processor.get("processors", []):
            _renumber_template(inner, new)
