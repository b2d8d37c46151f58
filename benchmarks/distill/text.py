"""English prose to train and measure on: manuals that Debian packages, taken apart into pages."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

# Packages, and where in them pages are.
SOURCES = {
    "python3.11-doc": "usr/share/doc/python3.11/html",
    "debian-handbook": "usr/share/doc/debian-handbook/html/en-US",
}
# Every so many pages one is measured on, and nothing of it is learned.
_HELD_OUT_EVERY = 12
# Characters: some 150 tokens.
_PASSAGE = 700


def write_text(
    folder: Path, *, training_passages: int, held_out_passages: int, seed: int
) -> tuple[Path, Path]:
    """Fetch the pages; write two .jsonl files of passages: to learn from, and of other pages."""
    training, held_out = folder / "training.jsonl", folder / "held-out.jsonl"
    if not training.exists():
        pages = list(_pages(folder))
        draw = random.Random(seed)
        draw.shuffle(pages)
        learned = [page for i, page in enumerate(pages) if i % _HELD_OUT_EVERY]
        _write(held_out, pages[::_HELD_OUT_EVERY], held_out_passages, draw)
        _write(training, learned, training_passages, draw)
    return training, held_out


def _write(path: Path, pages: list[list[str]], number: int, draw: random.Random) -> None:
    passages = [passage for page in pages for passage in _passages(page)]
    draw.shuffle(passages)
    lines = (json.dumps({"text": passage}) + "\n" for passage in passages[:number])
    path.write_text("".join(lines))


def _passages(page: list[str]) -> Iterator[str]:
    """Paragraphs that follow one another, together long enough to be a sequence."""
    passage: list[str] = []
    for paragraph in page:
        passage.append(paragraph)
        if sum(map(len, passage)) >= _PASSAGE:
            yield "\n\n".join(passage)
            passage = []


def _pages(folder: Path) -> Iterator[list[str]]:
    for package, place in SOURCES.items():
        subprocess.run(["apt-get", "download", "-q", package], cwd=folder, check=True)
        (archive,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive.name, package], cwd=folder, check=True)
        for path in sorted((folder / package / place).rglob("*.html")):
            reader = _Paragraphs()
            reader.feed(path.read_text(encoding="utf-8", errors="replace"))
            yield reader.found


class _Paragraphs(HTMLParser):
    """The text of a page's paragraphs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "p":
            self._open = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" and self._open is not None:
            text = " ".join("".join(self._open).split())
            if text:
                self.found.append(text)
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self._open.append(data)
