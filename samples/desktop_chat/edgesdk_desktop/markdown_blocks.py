"""Cuts markdown into blocks that a window shows: prose as HTML, and code with its language."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from markdown_it import MarkdownIt
from markdown_it.token import Token


@dataclass(frozen=True)
class Prose:
    """Paragraphs, lists, tables, headings: HTML as Qt's rich text knows it."""

    html: str


@dataclass(frozen=True)
class Code:
    """A block of code, as it is to be copied."""

    language: str
    text: str


Block: TypeAlias = Prose | Code


def markdown_blocks(text: str) -> tuple[Block, ...]:
    """Cut a text into blocks. HTML in it is shown as text, and pictures are shown as links: nothing
    is loaded because an answer says so. A code fence that is still open is a block of code."""
    parser = _parser()
    blocks: list[Block] = []
    prose: list[Token] = []

    def end_prose() -> None:
        if prose:
            blocks.append(Prose(parser.renderer.render(prose, parser.options, {}).strip()))
            prose.clear()

    for token in parser.parse(text):
        if token.type in ("fence", "code_block") and token.level == 0:
            end_prose()
            language = token.info.split()[0] if token.info.split() else ""
            blocks.append(Code(language, token.content.rstrip("\n")))
        else:
            prose.append(token)
    end_prose()
    return tuple(blocks)


@cache
def _parser() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False, "breaks": True})
    return made.enable(["table", "strikethrough"]).disable("image")
