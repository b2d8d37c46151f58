"""Find the tokens that end an answer, as far as a checkpoint's settings do not name them.

A model ends its answer with the token that ends a turn in its template. Settings often name only
the end of a text, or an older token. llama.cpp therefore knows ends by their names too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from edgesdk.errors import TemplateError
from edgesdk.text.template import ChatTemplate

# As `llama_vocab::impl::load` in llama.cpp's src/llama-vocab.cpp, without fill-in-the-middle.
_NAMES = frozenset(
    (
        *(
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<|return|>",
            "<|call|>",
            "<|calls|>",
            "<|flush|>",
        ),
        *("<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
        *("<|end_of_text|>", "<end_of_utterance>", "<turn|>", "<|tool_response>", "<eos>"),
        "<｜end▁of▁sentence｜>",
    )
)
_WORDS = "probe_words"
_TURN = ({"role": "user", "content": "?"}, {"role": "assistant", "content": _WORDS})


def named_ends(special: Mapping[str, int]) -> list[int]:
    """Special tokens that llama.cpp takes as ends by their names, in the order of their ids."""
    names = _NAMES & special.keys()
    if {"<|return|>", "<|call|>"} <= names:
        # In gpt-oss's format "<|end|>" ends a part of an answer.
        names -= {"<|end|>"}
    return sorted(special[name] for name in names)


def turn_end(
    template: str | None, tokens: Collection[str], variables: Mapping[str, str | None]
) -> str | None:
    """Find the token with which a template ends the assistant's turn.

    Args:
        tokens: the texts that may be one: the added tokens.
        variables: the special tokens that the template may write, by their names.

    Returns:
        None where it ends a turn with ordinary text, or cannot be rendered.
    """
    if template is None:
        return None
    known = {name: text for name, text in variables.items() if text is not None}
    for conversation in (_TURN, ({"role": "system", "content": "!"}, *_TURN)):
        try:
            text = ChatTemplate(template).render(
                conversation, add_generation_prompt=False, special_tokens=known
            )
        except TemplateError:
            continue
        if _WORDS not in text:
            return None
        after = text.plain.rpartition(_WORDS)[2].lstrip()
        ends = [token for token in tokens if token.strip() and after.startswith(token)]
        return max(ends, key=len, default=None)
    return None
