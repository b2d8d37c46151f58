"""How prompts begin that begin with the same messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgesdk.text.prompts import PromptEncoder

# What follows may change the last tokens of what is shared; these begin with unlike tokens.
_CONTINUATIONS = ("A", "b", "\n\n1", " the")


def beginning(encoder: PromptEncoder, messages: Sequence[dict[str, Any]]) -> list[int]:
    """Ids that start every conversation which starts with `messages`.

    A last message of the user may go on in its own text; after any other, a message of the user
    follows.

    Raises:
        TemplateError, InvalidText: see `PromptEncoder.chat`.
    """
    prompts = [encoder.chat(_continued(messages, text)) for text in _CONTINUATIONS]
    shortest = min(prompts, key=len)
    for place, token in enumerate(shortest):
        if any(prompt[place] != token for prompt in prompts):
            return shortest[:place]
    return shortest


def _continued(messages: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    last = messages[-1]
    if last["role"] == "user" and isinstance(last["content"], str):
        return [*messages[:-1], {**last, "content": last["content"] + text}]
    return [*messages, {"role": "user", "content": text}]
