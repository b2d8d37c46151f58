"""Settle the text side for a model: what cannot be used goes, and is told.

Checkpoints name ends of answers that no token has, carry templates that do not compile, and bring
tokens for which the embedding has no rows. transformers and llama.cpp run them all the same.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from edgesdk.bundle.manifest import TokenizerEntry
from edgesdk.errors import CheckpointError, ConfigMismatch, TemplateError, UnsupportedBundle
from edgesdk.text.template import ChatTemplate
from edgesdk.text.tokenizer import piece_bytes_for
from edgesdk_export.tokenizers.text_files import TextFiles

QUESTION = "Hello"
_USER = {"role": "user", "content": QUESTION}
# Some templates want a system message, others refuse one.
CONVERSATIONS = ([_USER], [{"role": "system", "content": "Be brief."}, _USER])


@dataclasses.dataclass(frozen=True)
class SettledText:
    """A text side that opens, and what its user should know of it, a sentence each."""

    text: TextFiles
    notes: tuple[str, ...]


def settle_text(text: TextFiles, rows: int, *, where: str) -> SettledText:
    """Take out what a model with `rows` rows in its embedding cannot use.

    Args:
        where: the checkpoint, for messages.

    Raises:
        ConfigMismatch: the vocabulary has more entries than the embedding has rows.
        CheckpointError: nobody knows what text the entries stand for.
    """
    parts = json.loads(text.tokenizer_json)
    try:
        piece_bytes_for(parts)
    except UnsupportedBundle as error:
        raise CheckpointError(f"{where}: {error.message}", hint=error.hint) from None
    parts, dropped = _without_rowless_tokens(parts, rows, where=where)
    raw = json.dumps(parts, ensure_ascii=False).encode() if dropped else text.tokenizer_json
    entry, notes = _known_special_tokens(text.entry, Tokenizer.from_buffer(raw), rows)
    if dropped:
        notes.insert(0, _dropped_note(dropped, rows))
    problem = template_problem(text.chat_template, entry)
    template = text.chat_template if problem is None else None
    if problem is not None:
        notes.append(f"It completes text but cannot chat: {problem}.")
        entry = entry.model_copy(update={"chat_template": None, "template_problem": problem})
    tool_template = text.tool_template if template is not None else None
    if tool_template is not None and (problem := _compile_problem(tool_template)) is not None:
        notes.append(f"Its template for tools cannot be used: {problem}.")
        tool_template = None
    if tool_template is None:
        entry = entry.model_copy(update={"tool_template": None})
    return SettledText(TextFiles(raw, template, entry, tool_template), tuple(notes))


def _compile_problem(template: str) -> str | None:
    try:
        ChatTemplate(template)
    except TemplateError as error:
        return _sentence(error)
    return None


def template_problem(template: str | None, entry: TokenizerEntry) -> str | None:
    """Say why a chat template cannot be used; None where it can."""
    if template is None:
        return "the checkpoint has no chat template"
    try:
        compiled = ChatTemplate(template)
    except TemplateError as error:
        return _sentence(error)
    problem = "its template leaves out what the user says"
    for messages in CONVERSATIONS:
        try:
            text = compiled.render(
                messages,
                bos_token=entry.bos_token,
                eos_token=entry.eos_token,
                special_tokens=entry.special_tokens,
            )
        except TemplateError as error:
            problem = _sentence(error)
            continue
        if QUESTION in text:
            return None
    return problem


def _sentence(error: TemplateError) -> str:
    text = error.message.rstrip(".")
    return text[:1].lower() + text[1:]


def _without_rowless_tokens(
    parts: Mapping[str, Any], rows: int, *, where: str
) -> tuple[dict[str, Any], list[str]]:
    """The parts without added tokens past the embedding's rows, and the texts of these tokens."""
    added = parts.get("added_tokens") or []
    dropped = {token["content"] for token in added if token["id"] >= rows}
    model = dict(parts.get("model") or {})
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        ids = {piece: i for piece, i in vocabulary.items() if piece not in dropped or i < rows}
        highest = max(ids.values(), default=-1)
        model["vocab"] = ids
    else:
        highest = len(vocabulary or []) - 1
    if highest >= rows:
        raise ConfigMismatch(
            f"{where}: the tokenizer has the id {highest:,}; the embedding has {rows:,} rows.",
            hint="Use the tokenizer that came with the checkpoint.",
        )
    left = [token for token in added if token["id"] < rows]
    order = [token["content"] for token in added if token["content"] in dropped]
    return {**parts, "added_tokens": left, "model": model}, order


def _dropped_note(dropped: list[str], rows: int) -> str:
    shown = ", ".join(repr(token) for token in dropped[:3])
    more = f" and {len(dropped) - 3} more" if len(dropped) > 3 else ""
    return (
        f"Dropped {shown}{more} from the tokenizer: the embedding has {rows:,} rows, and none for"
        " them. In a prompt they are plain text."
    )


def _known_special_tokens(
    entry: TokenizerEntry, tokenizer: Tokenizer, rows: int
) -> tuple[TokenizerEntry, list[str]]:
    """The entry without ids that no token has."""

    def known(token: int) -> bool:
        return token < rows and tokenizer.id_to_token(token) is not None

    notes = []
    changes: dict[str, Any] = {}
    unknown = [token for token in entry.eos_token_ids if not known(token)]
    if unknown:
        changes["eos_token_ids"] = tuple(filter(known, entry.eos_token_ids))
        names = ", ".join(map(str, unknown))
        notes.append(f"Left out {names} from the ends of an answer: the tokenizer has no such id.")
    if entry.eos_token is not None and tokenizer.token_to_id(entry.eos_token) is None:
        changes["eos_token"] = None
    if entry.bos_token_id is not None and not known(entry.bos_token_id):
        changes |= {"bos_token": None, "bos_token_id": None, "add_bos": False}
        notes.append(
            f"Left out {entry.bos_token_id} as the begin of a text: the tokenizer has no such id."
        )
    if not changes.get("eos_token_ids", entry.eos_token_ids):
        notes.append("No token ends an answer: it goes on until max_tokens.")
    return entry.model_copy(update=changes), notes
