"""Cuts markdown into blocks that a window shows: prose as HTML, and code with its language.

A text that grows is not read again from its start: a block of CommonMark that is closed never
changes, so what stands before the last ones is settled. No block is long, lists neither, so that
the work for one more piece of an answer does not grow with the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from markdown_it import MarkdownIt
from markdown_it.token import Token

# Of the markdown of a block, in characters: more is cut, where a paragraph or a list's item ends.
_MAX_PROSE = 800


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
    return GrowingMarkdown().read(text)


class GrowingMarkdown:
    """The blocks of a text that grows.

    Attributes:
        characters_read: how much of it was parsed the last time.
    """

    def __init__(self) -> None:
        self.characters_read = 0
        self._settled: list[Block] = []
        self._source = ""
        # Links whose address stands elsewhere.
        self._references: dict[str, Any] = {}

    def read(self, text: str) -> tuple[Block, ...]:
        """The blocks of the text as it is now."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if not text.startswith(self._source):
            self._settled, self._source, self._references = [], "", {}
        rest = text[len(self._source) :]
        self.characters_read = len(rest)
        lines = [0, *(at + 1 for at, character in enumerate(rest) if character == "\n")]
        unsettled: list[Block] = []
        settled_to = 0
        for block, after in self._blocks(rest, lines):
            unsettled.append(block)
            # A line that is not whole yet may turn out to belong to the block before it.
            if after is not None and after < len(lines) - 1:
                self._settled += unsettled
                unsettled, settled_to = [], lines[after]
        self._source += rest[:settled_to]
        return (*self._settled, *unsettled)

    def _blocks(self, text: str, lines: list[int]) -> Iterator[tuple[Block, int | None]]:
        """Blocks, each with the line where the one after it begins; None for the last one."""
        parser = _parser()
        pieces = list(_pieces(parser.parse(text, self._references)))
        prose: list[Token] = []
        begun = 0
        for number, (line, tokens) in enumerate(pieces):
            after = pieces[number + 1][0] if number + 1 < len(pieces) else None
            first = tokens[0]
            if first.type in ("fence", "code_block"):
                language = first.info.split()[0] if first.info.split() else ""
                yield Code(language, first.content.rstrip("\n")), after
                continue
            if not prose:
                begun = line
            if prose and prose[-1] is tokens[-1]:
                # The next item of the same list.
                prose[-1:] = tokens[1:]
            else:
                prose += tokens
            code_follows = after is not None and pieces[number + 1][1][0].type in (
                "fence", "code_block",
            )  # fmt: skip
            long = after is not None and lines[after] - lines[begun] > _MAX_PROSE
            if after is None or code_follows or long:
                html = parser.renderer.render(prose, parser.options, {}).strip()
                prose = []
                yield Prose(html), after


def _pieces(tokens: list[Token]) -> Iterator[tuple[int, list[Token]]]:
    """The blocks of the outermost level with their first lines; each item of a list is one."""
    piece: list[Token] = []
    for token in tokens:
        piece.append(token)
        if token.level == 0 and token.nesting <= 0:
            assert piece[0].map is not None, "a block knows its lines"
            yield from _items(piece) if "list" in piece[0].type else [(piece[0].map[0], piece)]
            piece = []


def _items(tokens: list[Token]) -> Iterator[tuple[int, list[Token]]]:
    """A list, cut into lists of one item, which keep their numbers."""
    opening, closing = tokens[0], tokens[-1]
    item: list[Token] = []
    for token in tokens[1:-1]:
        item.append(token)
        if token.type == "list_item_close" and token.level == 1:
            assert item[0].map is not None, "an item knows its lines"
            attrs = {"start": int(item[0].info)} if opening.type == "ordered_list_open" else {}
            yield item[0].map[0], [opening.copy(attrs=attrs), *item, closing]
            item = []


@cache
def _parser() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False, "breaks": True})
    return made.enable(["table", "strikethrough"]).disable("image")
