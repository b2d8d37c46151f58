"""Keep text of users, tools and documents from becoming control tokens.

Control tokens are a model's special tokens (`<|im_end|>`), and those added tokens with a text of
their own that its chat template writes (`<tool_call>`); transformers' `sanitize_control_tokens`
means the same. Only the template's text makes special ones. Those with a text also come of what the
assistant has said before, because the model itself wrote them as tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from edgesdk.text.template_text import ASSISTANT, TEMPLATE, TemplateText
from edgesdk.text.tokenizer import Tokenizer


class Piece(NamedTuple):
    """A part of a prompt: a control token's text, or plain text."""

    text: str
    control: bool


@dataclass(frozen=True)
class ControlTokens:
    """The control tokens of a model, by their text.

    Args:
        special: ids of those that stand for no text.
        spelled: ids of those that have a text of their own.
    """

    special: Mapping[str, int]
    spelled: Mapping[str, int]

    @cached_property
    def ids(self) -> dict[int, str]:
        """The text of each one."""
        return {
            token: text for texts in (self.spelled, self.special) for text, token in texts.items()
        }

    def is_clean(self, text: TemplateText) -> bool:
        """Whether all that looks like a control token in a prompt may be one."""
        return list(self._allowed(text)) == [
            found.span() for found in self._any.finditer(text.plain)
        ]

    def split(self, text: TemplateText) -> list[Piece]:
        """Cut a prompt at the control tokens that it may have."""
        pieces, at = [], 0
        for start, end in [*self._allowed(text), (len(text), len(text))]:
            if at < start:
                pieces.append(Piece(text.plain[at:start], control=False))
            if start < end:
                pieces.append(Piece(text.plain[start:end], control=True))
            at = end
        return pieces

    def agrees(self, text: TemplateText, ids: Sequence[int]) -> bool:
        """Whether `ids` have no control tokens but those that stand in `text` as they are.

        Normalization makes others of some texts: NFKC turns full-width letters into plain ones.
        """
        counted = Counter(token for token in ids if token in self.ids)
        texts = Counter(found[0] for found in self._any.finditer(text.plain))
        return all(counted[token] <= texts[self.ids[token]] for token in counted)

    def _allowed(self, text: TemplateText) -> Iterator[tuple[int, int]]:
        for start, end, origin in text.runs():
            pattern = {TEMPLATE: self._any, ASSISTANT: self._spelled}.get(origin)
            if pattern is not None:
                for found in pattern.finditer(text.plain[start:end]):
                    yield start + found.start(), start + found.end()

    @cached_property
    def _any(self) -> re.Pattern[str]:
        return _any_of([*self.special, *self.spelled])

    @cached_property
    def _spelled(self) -> re.Pattern[str]:
        return _any_of(self.spelled)


def control_tokens(
    added: Mapping[str, int], special: Container[int], literals: str
) -> ControlTokens:
    """The control tokens among the added ones.

    A single character, or nothing but whitespace (Gemma's runs of newlines), is ordinary text.

    Args:
        added: ids of the added tokens, by text; `special` has those that stand for no text.
        literals: what the chat template writes.
    """
    texts = {text: token for text, token in added.items() if len(text) > 1 and not text.isspace()}
    return ControlTokens(
        {text: token for text, token in texts.items() if token in special},
        {text: token for text, token in texts.items() if token not in special and text in literals},
    )


def silent_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The added tokens that stand for no text, by the name that templates write."""
    return {
        text: token
        for text, token in tokenizer.added_tokens.items()
        if text and not tokenizer.token_bytes(token)
    }


def _any_of(texts: Sequence[str] | Mapping[str, int]) -> re.Pattern[str]:
    # The longest first, as tokenizers choose.
    ordered = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or "(?!)")
