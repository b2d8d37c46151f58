"""Read answers as people write them: numbers in several languages, a last line, JSON, a letter."""

from __future__ import annotations

import json
import re
import unicodedata
from fractions import Fraction
from typing import Any

_NUMBER = re.compile(r"(?<![A-Za-z_\d.])-?\d+(?:[.,]\d+)*")
_THIN_SPACES = str.maketrans({"\u2009": None, "\u202f": None, "\N{MINUS SIGN}": "-"})
_THOUSANDS = r"-?\d{1,3}(?:%s\d{3})+"
# In the styles that think before they answer, what stands after the last of these is the answer.
_MARKS = re.compile(r"(?:answer|antwort|respuesta|答案)\s*(?:is|ist|es|是|为)?\s*[:：]?", re.I)
_FENCE = re.compile(r"```[a-z]*\n?(.*?)```", re.S)
_LEADING_LETTER = re.compile(r"^\W*([A-D])(?![A-Za-z])")
_LETTER = re.compile(r"(?<![A-Za-z])([A-D])(?![A-Za-z])")


def numbers_in(text: str) -> list[frozenset[Fraction]]:
    """Read the numbers in `text`, in order.

    Each has all values that it may have: "1.234" is another number in German than in English.
    """
    plain = unicodedata.normalize("NFKC", text.translate(_THIN_SPACES))
    return [_readings(found) for found in _NUMBER.findall(plain)]


def _readings(written: str) -> frozenset[Fraction]:
    found = set()
    for thousands, point in ((",", "."), (".", ",")):
        whole, *rest = written.split(point)
        if thousands in whole and not re.fullmatch(_THOUSANDS % re.escape(thousands), whole):
            continue
        if len(rest) <= 1 and thousands not in "".join(rest):
            found.add(Fraction(".".join([whole.replace(thousands, ""), *rest])))
    return frozenset(found)


def final_part(text: str) -> str:
    """What is said after the last word for "answer", else the last line that says something."""
    marks = [mark.end() for mark in _MARKS.finditer(text)]
    if marks and any(map(str.isalnum, text[marks[-1] :])):
        return text[marks[-1] :]
    lines = [line for line in text.splitlines() if any(map(str.isalnum, line))]
    return lines[-1] if lines else ""


def code_line(text: str) -> str:
    """The line of code in an answer, out of its fence if there is one."""
    fenced = _FENCE.search(text)
    lines = (fenced.group(1) if fenced else text).strip().strip("`").splitlines()
    return lines[-1].strip() if lines else ""


def json_in(text: str) -> Any:
    """Read the first JSON object in `text`; None where there is none."""
    start = text.find("{")
    if start < 0:
        return None
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        return None


def letter_in(text: str) -> str | None:
    """The letter, A to D, that an answer begins with, else the last that stands alone."""
    plain = unicodedata.normalize("NFKC", text)
    if leading := _LEADING_LETTER.match(plain):
        return leading.group(1)
    found = _LETTER.findall(plain)
    return str(found[-1]) if found else None


def names(text: str, name: str) -> bool:
    """Whether `text` has `name` as whole words, whatever the case and the accents."""
    # Chinese has no spaces between words, so only Latin letters end one.
    return re.search(f"(?<![a-z]){re.escape(_plain(name))}(?![a-z])", _plain(text)) is not None


def _plain(text: str) -> str:
    parts = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(sign for sign in parts if not unicodedata.combining(sign)).split())
