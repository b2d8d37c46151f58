"""Find texts that say nearly the same, so that none is paid for or learned twice."""

from __future__ import annotations

import re
import unicodedata

from edgesdk.errors import requires_extra

_SHINGLE = 3
_PERMUTATIONS = 128
# With so many permutations no index tells higher ones apart.
_MAX_CANDIDATE_SIMILARITY = 0.9


class SeenTexts:
    """Remembers texts, and finds those that are near one that it has.

    Two texts are near where the sets of their character triples are alike (Jaccard similarity; the
    candidates are found by MinHash: Broder, 1997) and their numbers are the same: "4 + 7" is
    another question than "4 + 8", however alike they look.

    Args:
        similarity: from which on two texts are near, above 0 and at most 1; 1 finds those that are
            equal but for case, width and spaces.

    Raises:
        MissingExtra: datasketch is not installed.
    """

    def __init__(self, similarity: float) -> None:
        with requires_extra("distill", needed_for="Finding near duplicates"):
            from datasketch import MinHashLSH
        self._similarity = similarity
        self._equal: set[str] = set()
        # Finds candidates, some of which are less alike.
        candidates = min(similarity, _MAX_CANDIDATE_SIMILARITY)
        self._index = MinHashLSH(threshold=candidates, num_perm=_PERMUTATIONS)

    def add(self, text: str) -> bool:
        """Remember a text; False where it, or one near it, is remembered already."""
        plain = normalized(text)
        if plain in self._equal:
            return False
        if self._similarity < 1:
            sketch = _sketch(plain)
            if any(self._near(plain, other) for other in self._index.query(sketch)):
                return False
            self._index.insert(plain, sketch)
        self._equal.add(plain)
        return True

    def _near(self, text: str, other: str) -> bool:
        ours, theirs = _shingles(text), _shingles(other)
        alike = len(ours & theirs) >= self._similarity * len(ours | theirs)
        return alike and _numbers(text) == _numbers(other)


def normalized(text: str) -> str:
    """A text without what makes no difference to its meaning: case, width and spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


def _shingles(text: str) -> set[str]:
    ends = range(max(1, len(text) - _SHINGLE + 1))
    return {text[at : at + _SHINGLE] for at in ends}


def _sketch(text: str) -> object:
    from datasketch import MinHash

    sketch = MinHash(num_perm=_PERMUTATIONS)
    sketch.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in _shingles(text)])
    return sketch
