"""Compare the token ids of a written GGUF in llama.cpp with those of `tokenizer.json`.

Apps of this SDK read `tokenizer.json`; other programs open the GGUF alone, and cut a text into
other tokens where its metadata do not say the same.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from edgesdk.errors import ExportError

Encode = Callable[[Sequence[str]], list[list[int]]]

_MARKS, _ADDED, _LEADING = "combining marks", "text around added tokens", "a space at the start"
# What llama.cpp is known to do otherwise in places: it normalizes nothing, and some of its patterns
# cut combining marks off; what added tokens do with the whitespace beside them, and that no space
# goes before a space, is not in a GGUF.
_TOLERATED = (_MARKS, _ADDED, _LEADING)

_TEXTS: dict[str, tuple[str, ...]] = {
    "plain text": (
        "The quick brown fox jumps over the lazy dog.",
        "It's what they'LL say; we'Re not sure he'd've gone - I'M off!",
        "e-mail: someone@example.org, https://example.org/a?b=c&d=%20e#f",
        "naïve café Zürich Ærøskøbing İstanbul ǅ ß ſ",
        "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم",
    ),
    "whitespace": (
        "\n",
        "\n\n",
        "\r\n\r\n",
        "\t",
        "\u00a0",
        "\u3000",
        "one ",
        "two  spaces   three    four",
        "a\tb\t\tc",
        "x\n\n\n  y \n",
        *(f"a{' ' * count}b" for count in (5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200)),
        *(f"a{' ' * count}" for count in (2, 4, 6, 11, 24, 47)),
        *("\n" * count for count in (3, 5, 8, 40)),
        *(f"x\n{' ' * count}\n{' ' * count}y" for count in (2, 4, 12)),
    ),
    _LEADING: (" ", "  ", " one", "   three", " \n \n"),
    "digits": ("1", "12", "123", "1234 12345", "3.14159 1,000,000 1e-5", "٣٤٥ ½ ² Ⅷ ①", "x1y22z3"),
    "CJK": (
        "中文测试，你好世界！今天是2024年5月3日。",
        "日本語のテキスト、カタカナ。",
        "한국어 텍스트.",
    ),
    "emoji": ("😀", "a😀b 👍🏽 🇩🇪🇫🇷 1️⃣ ❤️", "👩‍👩‍👧‍👦 🏳️‍🌈"),
    _MARKS: ("e\u0301 n\u0303o a\u0308\u0323", "नमस्ते दुनिया", "ภาษาไทย", "עִבְרִית"),
    "code": (
        "def f(x: int) -> str:\n    return f\"{x**2:>8}\"  # comment\n\n\nclass A:\n\tpass\n",
        "for (int i=0;i<10;++i){ a[i] <<= 0x1F; } // !=, ===, ->",
        "<div class=\"x\">&nbsp;</div>\\n \\t $100 50% a_b __init__ #tag @user",
        '{"key": [1, 2.5, null, true], "text": "a\\"b"}',
    ),
    "control-looking text": (
        "<|nothing|> </nothing> [NOTHING] <<nothing>> <0x41> <0xFF> ▁ <unknown>",
        "control \x07 \x1b[0m \x7f \u200b\u200d\ufeff\u2028",
    ),
}  # fmt: skip
_MAX_ADDED = 40


@dataclass(frozen=True)
class _Difference:
    kind: str
    text: str
    expected: list[int]
    found: list[int]


def check_token_ids(tokenizer_json: bytes, encode: Encode) -> tuple[str, ...]:
    """Compare on texts that are hard to cut.

    Args:
        encode: ids of texts as llama.cpp makes them of the written file.

    Returns:
        What its user should know: where llama.cpp is known to cut otherwise, and does.

    Raises:
        ExportError: it cuts ordinary text otherwise; the first such text is named.
    """
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    probes = list(_probes(json.loads(tokenizer_json)))
    ids = encode([text for _, text in probes])
    differences = [
        _Difference(kind, text, expected, found)
        for (kind, text), found in zip(probes, ids, strict=True)
        if (expected := tokenizer.encode(text, add_special_tokens=False).ids) != found
    ]
    for wrong in differences:
        if wrong.kind not in _TOLERATED:
            raise ExportError(
                f"The self-test failed: llama.cpp would cut {wrong.kind} otherwise than the"
                f" checkpoint's tokenizer.json: {wrong.text!r} into {_short(wrong.found)}, not"
                f" {_short(wrong.expected)}.",
                hint="Export to ONNX instead, and please report it with the checkpoint's name.",
            )
    return tuple(
        f"Programs that open model.gguf alone cut {kind} otherwise than tokenizer.json, such as"
        f" {group[0].text!r}; edgesdk reads tokenizer.json."
        for kind, group in (
            (kind, list(group))
            for kind, group in itertools.groupby(differences, lambda found: found.kind)
        )
    )


def _probes(parts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs of a kind and a text; the texts around added tokens come last."""
    for kind, texts in _TEXTS.items():
        for text in texts:
            yield kind, text
    added = [token["content"] for token in parts.get("added_tokens") or []]
    # From both ends: the first are those of the vocabulary, the last those of chats and tools.
    if len(added) > _MAX_ADDED:
        added = added[: _MAX_ADDED // 2] + added[-_MAX_ADDED // 2 :]
    for token in added:
        for text in (token, f"{token}user\nHi{token}\n", f"a {token} b{token}{token}  c"):
            yield _ADDED, text


def _short(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 12 else f"[{', '.join(map(str, ids[:12]))}, ...]"
