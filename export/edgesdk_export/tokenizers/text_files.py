"""Hold the files of the text side of a bundle, and its entry in the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from edgesdk.bundle.manifest import TokenizerEntry

# Where transformers puts them.
TEMPLATE_NAME = "chat_template.jinja"
TEMPLATES_FOLDER = "additional_chat_templates"
TOOL_TEMPLATE_NAME = f"{TEMPLATES_FOLDER}/tool_use.jinja"


@dataclass(frozen=True)
class TextFiles:
    """The files of the text side, and what the manifest says of them.

    Attributes:
        tokenizer_json: a `tokenizer.json` that adds nothing of its own to a text: no BOS, no
            padding, no truncation. The same checkpoint gives the same bytes.
        chat_template: Jinja source, None where the checkpoint has none.
        entry: special tokens, and whether a prompt begins with BOS.
        tool_template: Jinja source for prompts with tools, where they have their own.
    """

    tokenizer_json: bytes
    chat_template: str | None
    entry: TokenizerEntry
    tool_template: str | None = None


def make_entry(
    *,
    chat_template: str | None,
    add_bos: bool,
    bos: tuple[str | None, int | None],
    eos_token: str | None,
    eos_ids: Sequence[int],
    tool_template: str | None = None,
    special_tokens: Mapping[str, str] = MappingProxyType({}),
) -> TokenizerEntry:
    """The manifest's entry; ids keep their order and lose their repeats. `bos` is text and id."""
    return TokenizerEntry(
        chat_template=TEMPLATE_NAME if chat_template is not None else None,
        tool_template=TOOL_TEMPLATE_NAME if tool_template is not None else None,
        add_bos=add_bos,
        bos_token=bos[0],
        bos_token_id=bos[1],
        eos_token=eos_token,
        eos_token_ids=tuple(dict.fromkeys(eos_ids)),
        special_tokens=dict(special_tokens),
    )
