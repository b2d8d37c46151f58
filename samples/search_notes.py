"""Search a folder of notes by meaning, on this machine: export a small encoder once, and ask.

edgesdk pull all-minilm-l6-v2 && edgesdk export all-minilm-l6-v2 --name minilm
python samples/search_notes.py ~/notes "how do I renew my passport?"
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

import edgesdk

# Long notes are cut into pieces of about so many words, which the model reads as a whole.
WORDS = 120


def pieces(folder: Path) -> list[tuple[str, str]]:
    """The notes' paragraphs, joined up to `WORDS` words: file name and text."""
    found: list[tuple[str, str]] = []
    for path in sorted([*folder.rglob("*.md"), *folder.rglob("*.txt")]):
        held: list[str] = []
        for paragraph in [*path.read_text(encoding="utf-8", errors="replace").split("\n\n"), None]:
            whole = held if paragraph is None else [*held, *paragraph.split()]
            if held and (paragraph is None or len(whole) > WORDS):
                found.append((str(path.relative_to(folder)), " ".join(held)))
                held = [] if paragraph is None else paragraph.split()
            else:
                held = whole
    return found


def vectors(embedder: edgesdk.Embedder, texts: list[str], cache: Path) -> np.ndarray:
    """The texts' vectors; only those that are new are computed."""
    known: dict[str, np.ndarray] = {}
    if cache.exists():
        with np.load(cache) as stored:
            known = {key: stored[key] for key in stored.files}
    keys = [hashlib.sha256(f"{embedder.name}\0{text}".encode()).hexdigest() for text in texts]
    fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    known |= zip(fresh, embedder.embed(list(fresh.values()), truncate=True), strict=True)
    if fresh:
        np.savez(cache, **{key: known[key] for key in keys})
    print(f"[{len(texts)} pieces, {len(fresh)} of them new]")
    return np.stack([known[key] for key in keys])


def main(folder: Path, question: str, name: str) -> None:
    """Print the three pieces that are nearest to a question."""
    found = pieces(folder)
    if not found:
        sys.exit(f"There are no notes (*.md, *.txt) in {folder}.")
    with edgesdk.load_embedder(name) as embedder:
        notes = vectors(embedder, [text for _, text in found], folder / ".vectors.npz")
        nearest = embedder.similarity(embedder.embed(question, truncate=True), notes)[0]
    for at in np.argsort(-nearest)[:3]:
        file, text = found[at]
        print(f"{nearest[at]:.2f}  {file}: {text[:200]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "minilm")
