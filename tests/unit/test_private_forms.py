"""What is private is found however it is written, and what is left of JSON is JSON."""

from __future__ import annotations

import json
import unicodedata
from itertools import pairwise
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgesdk.hybrid.privacy.builtin_detectors import BUILTIN_DETECTORS
from edgesdk.hybrid.privacy.detectors import MAX_CHARACTERS, Terms, TextTooLarge
from edgesdk.hybrid.privacy.normalization import normalized, read_json, readings
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.hybrid.privacy.redaction import Redactor, StreamRestorer, restore, restore_json

NAMES = Terms(["Jürgen Groß", "王小明", "Project Falcon", 'Ann "Ace" Lee'], kind="NAME")
DETECTORS = (NAMES, *BUILTIN_DETECTORS)
VALUES = {
    "Jürgen Groß": "NAME",
    "王小明": "NAME",
    "Project Falcon": "NAME",
    "ann.lee@mail.example": "EMAIL",
    "4111 1111 1111 1111": "CARD",
    "DE89 3704 0044 0532 0130 00": "IBAN",
    "+49 30 901820": "PHONE",
    "06 12 34 56 78": "PHONE",
    "sk-proj-abcdefghijklmnop1234": "API_KEY",
}


def full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def all_escaped(text: str) -> str:
    return "".join(f"\\u{ord(c):04x}" for c in text)


def arabic_digits(text: str) -> str:
    return "".join(chr(0x660 + int(c)) if c.isdecimal() else c for c in text)


FORMS = {
    "as it is": str,
    "full width": full_width,
    "zero width": "\u200b".join,
    "joiners": "\u2060\u200d".join,
    "soft hyphens": "\u00ad".join,
    "bidi controls": lambda text: f"\u202e{chr(0x202C).join(text)}\u2066",
    "variation selectors": "\ufe0f".join,
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
    "thin spaces": lambda text: text.replace(" ", "\u2009"),
    "other digits": arabic_digits,
    "JSON": lambda text: json.dumps({"a": [text, 1], "b": "x\ny"}),
    "JSON in JSON": lambda text: json.dumps({"a": json.dumps({"b": text})}),
    "JSON, all escaped": lambda text: f'{{"a": "{all_escaped(text)}"}}',
    "JSON, cut": lambda text: json.dumps({"a": f"line\n{text}\nmore"})[:-3],
    "JSON after words": lambda text: f"The tool said: {json.dumps([text])} and ended.",
    "JSON line feeds": lambda text: json.dumps({"a": f"line\n{text}\ttab"}),
    "escaped in prose": lambda text: f"It said {all_escaped(text)} there",
    "URL": lambda text: f"https://x.example/a?q={quote(text, safe='')}&r=2",
    "form": lambda text: f"a=1&q={quote_plus(text)}&r=2",
    "URL twice": lambda text: f"https://x.example/a?q={quote(quote(text, safe=''), safe='')}",
    "HTML": lambda text: f"<b>{''.join(f'&#{ord(c)};' for c in text)}</b>",
    "hexadecimal HTML": lambda text: "".join(f"&#x{ord(c):X};" for c in text),
    "full width in JSON": lambda text: json.dumps({"a": full_width(text)}),
}


def reads(text: str, value: str) -> bool:
    """Whether somebody who undoes every escape finds the value in the text."""
    plain = normalized(value).casefold()
    return any(
        plain in normalized(reading.text).casefold()
        for first in (text, read_json(text).reading.text)
        for reading in readings(first)
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", VALUES)
def test_a_value_in_any_form_does_not_leave(form: str, value: str) -> None:
    text = FORMS[form](value)
    assert reads(text, value)
    redactor = Redactor(DETECTORS)
    hidden = redactor.redact(text)
    assert not reads(hidden, value)
    assert VALUES[value] in {placeholder.kind for placeholder in redactor.values}
    assert Policy(kinds={VALUES[value]: "local_only"}, detectors=DETECTORS).evaluate(
        [{"role": "tool", "content": text}]
    ).upload == "local_only"  # fmt: skip
    if form.startswith("JSON") and form != "JSON, cut":
        start = 0 if form != "JSON after words" else hidden.index("[")
        json.JSONDecoder().raw_decode(hidden[start:])
    back = restore(redactor, hidden)
    assert back == text or json_values(back) == json_values(text)


def json_values(text: str) -> Any:
    """The JSON in a text."""
    start = min(text.find(c) % (len(text) + 1) for c in "{[")
    return json.JSONDecoder().raw_decode(text[start:])[0]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("parts", [2, 3])
def test_a_value_that_is_split_over_parts_does_not_leave(value: str, parts: int) -> None:
    for at in range(1, len(value) - parts + 1):
        cuts = [0, *(at + step for step in range(parts - 1)), len(value)]
        pieces = [value[a:b] for a, b in pairwise(cuts)]
        texts = [f"It is {pieces[0]}", *pieces[1:-1], f"{pieces[-1]}, I think."]
        redactor = Redactor(DETECTORS)
        hidden = redactor.redact_parts(texts)
        assert not reads("".join(hidden), value)
        assert value.replace(" ", "") not in "".join(hidden).replace(" ", "")
        assert [restore(redactor, text) for text in hidden] == texts


def test_parts_that_are_words_stay_as_they_are() -> None:
    texts = ["Page 12", "345 is the last one", "", "of 4111.", "1111 items"]
    assert Redactor(DETECTORS).redact_parts(texts) == texts


def test_a_value_is_told_to_the_app_without_the_escapes_of_its_json() -> None:
    redactor = Redactor(DETECTORS)
    hidden = redactor.redact(json.dumps({"name": "王小明", "nick": 'Ann "Ace" Lee'}))
    name, nick = json.loads(hidden).values()
    assert restore(redactor, f"He is {name}, she {nick}.") == 'He is 王小明, she Ann "Ace" Lee.'


def test_an_answer_that_is_json_stays_json() -> None:
    redactor = Redactor(DETECTORS)
    nick = redactor.redact('Ann "Ace" Lee')
    for answer in (f'{{"x": "{nick}", "y": ["{nick} and {nick}"]}}', f'Here: {{"x": "{nick}"}}.'):
        found = json_values(restore(redactor, answer))
        assert found["x"] == 'Ann "Ace" Lee'
        stream = StreamRestorer(redactor)
        assert "".join(map(stream.feed, answer)) + stream.flush() == restore(redactor, answer)
    assert restore(redactor, f"She said: {nick}") == 'She said: Ann "Ace" Lee'
    assert json.loads(restore(redactor, f'"{nick}"', is_json=True)) == 'Ann "Ace" Lee'


def test_a_private_number_in_json_is_a_number_again() -> None:
    redactor = Redactor(DETECTORS)
    text = '{"card":4111111111111111, "n": 5}'
    hidden = redactor.redact(text)
    assert isinstance(json.loads(hidden)["card"], str)
    assert restore(redactor, hidden) == text
    stream = StreamRestorer(redactor)
    assert "".join(map(stream.feed, hidden)) + stream.flush() == text
    placeholder = json.loads(hidden)["card"]
    assert restore_json(redactor, {"to": placeholder}) == {"to": 4111111111111111}
    assert restore_json(redactor, {"to": f"a {placeholder}"}) == {"to": "a 4111111111111111"}


def test_the_keys_of_a_value_say_what_is_private() -> None:
    redactor = Redactor(DETECTORS)
    value = {"password": "swordfish", "n": [1, 2.5, None, True], "api_key": "Zx81-qqpl-772"}
    hidden = redactor.redact_value(value)
    assert "swordfish" not in str(hidden)
    assert "Zx81" not in str(hidden)
    assert hidden["n"] == value["n"]
    assert restore_json(redactor, hidden) == value


json_texts = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from([*VALUES, 'Ann "Ace" Lee', "x\\ann@x.io\n", "a\nbob@x.io"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(json_texts, st.booleans(), st.sampled_from([None, 2]))
@example({"password": "12345678"}, True, None)
@example([[4111111111111111], "4111111111111111"], True, None)
@example({"a": "line\nann@x.io", "b": -4111111111111111}, False, 2)
@example(200000000, False, None)
def test_json_stays_json_and_comes_back(value: Any, ascii: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii, indent=indent)
    redactor = Redactor(DETECTORS)
    hidden = redactor.redact(text)
    if isinstance(value, list | dict):
        json.loads(hidden)
        assert json.loads(restore(redactor, hidden)) == json.loads(text)
    assert restore_json(redactor, redactor.redact_value(value)) == json.loads(json.dumps(value))


@given(st.text(max_size=40))
@example("\\ud83d\\ude00 \\ud83d %F0%9F%98%80 %F0 &amp; &#0; &#x110000;")
@example("e\u0301\u0302 ﾊﾟ ㈱ ﬁ \u1100\u1161 9\u20e3")
def test_every_reading_knows_where_its_letters_come_from(text: str) -> None:
    base = read_json(text)
    for reading in [base.reading, *readings(base.reading.text)]:
        last = 0
        for index in range(len(reading.text)):
            start, end = reading.place(index, index + 1)
            assert last <= start < end <= max(len(text), len(base.reading.text))
            last = start
        assert not any("\ud800" <= letter <= "\udfff" for letter in reading.text)


def test_a_text_that_is_too_large_stays_here() -> None:
    text = "word " * (MAX_CHARACTERS // 5 + 1)
    with pytest.raises(TextTooLarge):
        Redactor(DETECTORS).redact(text)
    verdict = Policy(default="allow").evaluate([{"role": "user", "content": text}], call="allow")
    assert verdict.upload == "local_only"
    parts = [{"type": "text", "text": text[: len(text) // 2 + 9]}] * 2
    assert Policy().evaluate([{"role": "user", "content": parts}]).upload == "local_only"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000,
        '{"a":' * 20_000,
        '{"a": b} ' * 20_000,
        "\\u0041" * 20_000,
        "%41" * 20_000,
        "&amp;" * 20_000,
        "4111 " * 20_000,
        "https://" * 20_000,
        "a@" * 20_000,
        "e\u0301" * 20_000,
        "password: " * 20_000,
        "1.2." * 20_000,
        "-----BEGIN " * 20_000,
        "\u200b" * 40_000,
    ],
    ids=lambda text: text[:9],
)
def test_no_text_takes_long(text: str) -> None:
    # Each of these takes a fraction of a second; a quadratic search would take minutes.
    redactor = Redactor(DETECTORS)
    assert restore(redactor, redactor.redact(text)) == text
