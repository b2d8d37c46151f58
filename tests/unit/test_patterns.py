"""What a pattern lets through is valid in each dialect that checks answers."""

from __future__ import annotations

import json
import re
from typing import Annotated

import pytest
from pydantic import Field, TypeAdapter
from support.fake_engine import ByteTokenizer

from edgesdk.structured.grammar_constraint import GrammarVocabulary
from edgesdk.structured.output_format import json_grammar

# Where the dialects differ, and some of each kind where they do not.
CHARACTERS = [
    *map(chr, [*range(4, 0x100), *range(0x1C, 0x20), 0x1680, *range(0x2000, 0x2010), 0xFEFF]),
    *"\u2028\u2029\u202f\u205f\u3000\u200c\u0660\uff10\u2160\u0301é日Ω_١²½ªᛮ‿",
]
PATTERNS = [r"\s", r"\S", r"\d", r"\D", r"\w", r"\W"]
PATTERNS += [f"[{part}]" for part in (r"\s", r"\S", r"-\d", r"\Dx", r"\w.", r"\W", r"\s\d")]
PATTERNS += [f"[^{part}]" for part in (r"\s", r"\S", r"\d", r"\D", r"\w", r"\W", r"\sa", r"\d\s")]
PATTERNS += [r"[\]\s]", r"\[\S", r"[^\]\S]", r"(a|\S)", r"\\s", r"[a\\s]"]


@pytest.fixture(scope="module")
def vocabulary() -> GrammarVocabulary:
    return GrammarVocabulary(ByteTokenizer())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_allowed_is_valid_everywhere(vocabulary: GrammarVocabulary, pattern: str) -> None:
    whole = f"^(?:{pattern})$"
    grammar = json_grammar({"type": "string", "pattern": whole})
    rust = TypeAdapter(Annotated[str, Field(pattern=whole)])
    matcher = vocabulary.constraint(grammar)._matcher
    two = [f"{first}{second}" for first in "[\\" for second in "a s"] if "\\\\" in pattern else []
    allowed = 0
    for text in [*CHARACTERS, *two, *(f"[{character}" for character in CHARACTERS[:40])]:
        matcher.reset()
        data = list(json.dumps(text, ensure_ascii=False).encode())
        if matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting():
            allowed += 1
            assert re.search(whole, text), f"Python refuses {text!r}"
            assert rust.validate_python(text) == text
    assert allowed
