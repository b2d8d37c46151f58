"""An OpenAI-compatible endpoint as teacher, by the log-probabilities that it gives of a text.

Two ways to ask are known:

- vLLM's `prompt_logprobs` at /v1/completions. Token ids go out, and come back with their
  log-probabilities, so nothing is encoded anew. The number of tokens is limited by the server's
  --max-logprobs (20).
- `echo` with `logprobs`, as llama-cpp-python's server has it. The text goes out; the tokens come
  back as texts, and must be those that were meant.

An endpoint that gives no log-probabilities teaches by its answers (`edgesdk generate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from tokenizers import Tokenizer

from edgesdk.errors import CloudRefused, TrainingError, VocabulariesDiffer
from edgesdk.hybrid.cloud.client import CloudClient
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk_export.distill.divergence import TeacherTokens

# Of a token that the endpoint does not tell: so little that it counts for nothing.
_UNTOLD = -1e4
# What a token that is no text by itself is decoded to.
_NO_TEXT = "\ufffd"
# What vLLM gives unless its --max-logprobs says otherwise.
_MOST_TOKENS = 20
_HINT = "Let the teacher write answers instead (edgesdk generate), and train on those."

Likeliest = dict[int, float]


class EndpointTeacher:
    """A model behind an endpoint that teaches.

    After the last token of a sequence nothing is told: it is never learned from.

    Args:
        tokenizer_json: the student's; each sequence is checked to be the same tokens there.
        vocab_size: of the student's logits.
        most_tokens: how many log-probabilities of a position the endpoint gives.

    Raises:
        InvalidOption: the endpoint cannot be used.
    """

    def __init__(
        self,
        cloud: Cloud,
        tokenizer_json: bytes,
        vocab_size: int,
        most_tokens: int = _MOST_TOKENS,
    ) -> None:
        self._cloud = cloud
        self._client = CloudClient([cloud])
        self._tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        self._vocab_size = vocab_size
        self._most_tokens = min(most_tokens, vocab_size)
        self._way: Literal["ids", "text"] | None = None

    @property
    def identity(self) -> str:
        return f"endpoint {self._cloud.base_url} {self._cloud.model}"

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def most_tokens(self) -> int:
        return self._most_tokens

    def tokens(self, ids: Sequence[int], k: int) -> TeacherTokens:
        """See `Teacher.tokens`.

        Raises:
            VocabulariesDiffer: the endpoint reads other tokens; the first is named.
            TrainingError: it gives no log-probabilities of a text, or fewer than `k` at a time.
            CloudError: it does not answer.
        """
        k = min(k, self.most_tokens)
        rows = [*self._rows(list(ids), k), {}]
        found_ids = torch.zeros((len(rows), k), dtype=torch.int64)
        log_probs = torch.full((len(rows), k), _UNTOLD)
        for place, row in enumerate(rows):
            best = sorted(row.items(), key=lambda each: -each[1])[:k]
            # Cells of their own, which take nothing from the others.
            spare = iter(token for token in range(k + len(best)) if token not in row)
            best += [(next(spare), _UNTOLD) for _ in range(k - len(best))]
            found_ids[place] = torch.tensor([token for token, _ in best])
            log_probs[place] = torch.tensor([log_prob for _, log_prob in best])
        return TeacherTokens(found_ids, log_probs, self._vocab_size)

    def close(self) -> None:
        """Free the connections."""
        self._client.close()

    def _rows(self, ids: list[int], k: int) -> list[Likeliest]:
        """The likeliest tokens after each of `ids` but the last."""
        if self._way != "text":
            try:
                found = self._asked({"prompt": ids, "prompt_logprobs": k})
                rows = _first_choice(found).get("prompt_logprobs")
                if isinstance(rows, list):
                    self._way = "ids"
                    return self._of_ids(ids, rows)
            except CloudRefused:
                if self._way == "ids":
                    raise
        rows = self._of_text(ids, k)
        self._way = "text"
        return rows

    def _asked(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._client.completion({**body, "max_tokens": 1, "temperature": 0.0})

    def _of_ids(self, ids: list[int], rows: list[Any]) -> list[Likeliest]:
        if len(rows) != len(ids):
            raise self._differs(f"of {len(ids)} tokens it read {len(rows)}")
        told: list[Likeliest] = []
        for token, row in zip(ids[1:], rows[1:], strict=True):
            known = row.get(str(token)) if isinstance(row, dict) else None
            if known is None:
                raise self._differs(f"it does not know token {token}")
            theirs, ours = known.get("decoded_token"), self._text_of(token)
            if isinstance(theirs, str) and _unlike(theirs, ours):
                raise self._differs(f"token {token} is {theirs!r} there and {ours!r} here")
            told.append({int(each): float(value["logprob"]) for each, value in row.items()})
        return told

    def _of_text(self, ids: list[int], k: int) -> list[Likeliest]:
        """Ask for the text of `ids`, without what the endpoint puts before it itself."""
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        found = self._asked({"prompt": text, "echo": True, "logprobs": k})
        told = _first_choice(found).get("logprobs")
        texts, rows = (
            (told.get("tokens"), told.get("top_logprobs")) if isinstance(told, dict) else (0, 0)
        )
        if not isinstance(texts, list) or not isinstance(rows, list) or len(rows) < len(ids):
            raise TrainingError(
                f"{self._cloud.name} gives no log-probabilities of a text.", hint=_HINT
            )
        # The last one is the token that it wrote itself; a BOS of its own comes first.
        start = len(texts) - 1 - len(ids)
        if start not in (0, 1):
            raise self._differs(f"of {len(ids)} tokens it read {len(texts) - 1}")
        for token, theirs in zip(ids, texts[start:], strict=False):
            ours = self._text_of(token)
            if _unlike(str(theirs), ours):
                raise self._differs(f"token {token} is {theirs!r} there and {ours!r} here")
        return [
            {
                self._ids_by_text[name]: float(log_prob)
                for name, log_prob in (row or {}).items()
                if name in self._ids_by_text
            }
            for row in rows[start + 1 : start + len(ids)]
        ]

    @cached_property
    def _ids_by_text(self) -> dict[str, int]:
        """Tokens by their texts, without those whose text another one has too."""
        found: dict[str, int] = {}
        twice: set[str] = set()
        for token in range(self._tokenizer.get_vocab_size(with_added_tokens=True)):
            text = self._text_of(token)
            if text in found:
                twice.add(text)
            found[text] = token
        return {text: token for text, token in found.items() if text not in twice}

    def _text_of(self, token: int) -> str:
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def _differs(self, how: str) -> VocabulariesDiffer:
        return VocabulariesDiffer(
            f"{self._cloud.name} and the student have different vocabularies: {how}.", hint=_HINT
        )


def _first_choice(found: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = found.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    return first if isinstance(first, dict) else {}


def _unlike(theirs: str, ours: str) -> bool:
    """Whether two texts of a token differ; where one is no whole text, that cannot be told."""
    if _NO_TEXT in theirs or _NO_TEXT in ours or not theirs:
        return False
    return theirs != ours
