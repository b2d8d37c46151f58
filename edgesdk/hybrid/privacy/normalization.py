"""Read a text as a person or a model would, with a map back to how it is written.

A detector looks for "ann@x.io". In a request the same may be written with full-width letters, with
zero-width characters between them, or escaped for JSON or a URL. Each `Reading` of a text has what
was decoded or normalized, and knows where in the text each of its characters came from.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

# Escapes in escapes, such as JSON in a string of JSON in a URL, are read so many levels deep.
_MAX_LEVELS = 3
# Brackets that begin no JSON may be tried so often in a text, and may look at so many characters
# for each of it.
_MAX_TRIES, _MAX_TRIED = 1_000, 8

# Start, end, what stands there, and how many characters each letter of that was made of.
Edit = tuple[int, int, str, Sequence[int] | None]


@dataclass(frozen=True)
class Reading:
    """What a text says, with the places of its characters in the text as it is written.

    Attributes:
        starts, ends: of what each character was read from; None where nothing was changed.
    """

    text: str
    starts: Sequence[int] | None = None
    ends: Sequence[int] | None = None

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Return where `text[start:end]`, which is not empty, is written."""
        if self.starts is None or self.ends is None:
            return start, end
        return self.starts[start], self.ends[end - 1]


@dataclass(frozen=True)
class JsonText:
    """A text in which there may be JSON.

    Attributes:
        reading: the text with the escapes in the strings of its JSON decoded.
        documents: where in the reading there are JSON objects and arrays, in order.
        tokens: where in the reading the insides of their strings are, and their numbers, in order.
    """

    reading: Reading
    documents: Sequence[tuple[int, int]] = ()
    tokens: Sequence[JsonToken] = field(default=())


@dataclass(frozen=True)
class JsonToken:
    """The inside of a string, or a number."""

    start: int
    end: int
    is_number: bool


_JSON_START = re.compile(r'\{\s*["}]|\[\s*["{\[\]\-0-9tfnIN]')
_JSON_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?', re.DOTALL)
_JSON_ESCAPE = re.compile(
    r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|u([0-9a-fA-F]{4})"
    r'|(["\\/bfnrt]))'
)
_ESCAPE = re.compile(
    rf"{_JSON_ESCAPE.pattern}|\\x([0-9a-fA-F]{{2}})|((?:%[0-9a-fA-F]{{2}})+)"
    r"|(&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});)"
)
_FORM_VALUE = re.compile(r"(?:^|[?&])[\w.\-\[\]%]+=([^\s&#\"'<>]*)", re.MULTILINE)
_SHORT_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_NOT_ASCII = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]+")
# Of Unicode's Default_Ignorable_Code_Point, what is no format character (Cf).
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def read_json(text: str) -> JsonText:
    """Find the JSON in a text, and read the strings in it."""
    edits: list[Edit] = []
    documents, tokens = [], []
    for start, end in _json_documents(text):
        documents.append((start, end))
        for match in _JSON_TOKEN.finditer(text, start, end):
            inside = match.span(1) if match[1] is not None else match.span()
            tokens.append(JsonToken(*inside, is_number=match[1] is None))
            if match[1] is not None and "\\" in match[1]:
                edits += _edits(_JSON_ESCAPE, text, *inside)
    if not edits:
        return JsonText(Reading(text), documents, tokens)
    reading = _edited(text, edits)
    assert reading.starts is not None, "edits leave a map"
    places = {place: index for index, place in enumerate(reading.starts)}
    places[len(text)] = len(reading.text)
    moved = [JsonToken(places[t.start], places[t.end], t.is_number) for t in tokens]
    return JsonText(reading, [(places[start], places[end]) for start, end in documents], moved)


def readings(text: str) -> Iterator[Reading]:
    """Yield the text as it is, and then what else it may be read as."""
    yield Reading(text)
    latest = Reading(text)
    for level in range(_MAX_LEVELS + 1):
        normal = _composed(latest, _normalizations(latest.text))
        if normal is not None:
            yield normal
            latest = normal
        if level == _MAX_LEVELS:
            return
        escapes = _edits(_ESCAPE, latest.text, 0, len(latest.text))
        decoded = _composed(latest, sorted([*escapes, *_form_spaces(latest.text)]))
        if decoded is None:
            return
        yield decoded
        latest = decoded


def escapes_in(text: str) -> list[tuple[int, int]]:
    """Return the places of escapes, none of which may be cut in two."""
    return [match.span() for match in _ESCAPE.finditer(text)]


def normalized(text: str) -> str:
    """Return a text in the form in which detectors see it: NFKC, with ASCII digits and dashes, and
    without what cannot be seen."""
    found = _composed(Reading(text), _normalizations(text))
    return text if found is None else found.text


def _json_documents(text: str) -> Iterator[tuple[int, int]]:
    """Yield the places of the outermost JSON objects and arrays, and of a string that is all."""
    bare = text.strip()
    if bare[:1] == '"' and _is_json(bare):
        start = text.index('"')
        yield start, start + len(bare)
        return
    decoder = json.JSONDecoder(parse_int=str, parse_float=str)
    tries, tried, at = 0, 0, 0
    while (match := _JSON_START.search(text, at)) is not None:
        at = match.start()
        try:
            _, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            tries, tried = tries + 1, tried + error.pos - at
            if tries > _MAX_TRIES or tried > _MAX_TRIED * len(text):
                return
            at += 1
        except RecursionError:
            return
        else:
            yield at, end
            at = end


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _edits(escape: re.Pattern[str], text: str, start: int, end: int) -> list[Edit]:
    """Return what each escape stands for. `escape` is `_JSON_ESCAPE`, or `_ESCAPE`."""
    found: list[Edit] = []
    for match in escape.finditer(text, start, end):
        high, low, single, short, *others = match.groups()
        widths: Sequence[int] | None = None
        if high is not None:
            stands = chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00)
        elif single is not None:
            stands = chr(int(single, 16))
        elif short is not None:
            stands = _SHORT_ESCAPES.get(short, short)
        elif others[0] is not None:
            stands = chr(int(others[0], 16))
        elif others[1] is not None:
            try:
                stands = bytes.fromhex(others[1].replace("%", "")).decode("utf-8")
            except UnicodeDecodeError:
                continue
            widths = [3 * len(letter.encode()) for letter in stands]
        else:
            stands = html.unescape(others[2])
        # Half of a surrogate pair is no character.
        if stands != match[0] and not any("\ud800" <= letter <= "\udfff" for letter in stands):
            found.append((*match.span(), stands, widths))
    return found


def _form_spaces(text: str) -> list[Edit]:
    """Return the pluses that stand for spaces in the values of a form or of a URL's query."""
    return [
        (at, at + 1, " ", None)
        for value in (_FORM_VALUE.finditer(text) if "+" in text else ())
        for at in range(*value.span(1))
        if text[at] == "+"
    ]


def _normalizations(text: str) -> list[Edit]:
    """Return the changes to NFKC, with ASCII digits, dashes and spaces; the invisible goes."""
    if text.isascii():
        return []
    found: list[Edit] = []
    for stretch in _NOT_ASCII.finditer(text):
        at = stretch.start()
        for cluster in _clusters(stretch[0]):
            plain = "".join(map(_plain, unicodedata.normalize("NFKC", cluster)))
            if plain != cluster:
                found.append((at, at + len(cluster), plain, None))
            at += len(cluster)
    return found


def _clusters(text: str) -> Iterator[str]:
    """Split a text where no character combines with the one before it."""
    start = 0
    for index in range(1, len(text)):
        first = unicodedata.normalize("NFKC", text[index])[:1]
        combines = first and (unicodedata.combining(first) or "\u1160" <= first <= "\u11ff")
        if not combines:
            yield text[start:index]
            start = index
    yield text[start:]


def _plain(letter: str) -> str:
    if letter.isascii():
        return letter
    category = unicodedata.category(letter)
    if category == "Cf" or _INVISIBLE.match(letter):
        return ""
    if category == "Nd":
        return str(unicodedata.decimal(letter))
    if category == "Pd" or letter == "\u2212":
        return "-"
    return " " if category == "Zs" else letter


def _composed(reading: Reading, edits: list[Edit]) -> Reading | None:
    """Apply edits to a reading; None where there are none."""
    if not edits:
        return None
    new = _edited(reading.text, edits)
    if reading.starts is None or reading.ends is None:
        return new
    assert new.starts is not None, "edits leave a map"
    assert new.ends is not None, "edits leave a map"
    starts = [reading.starts[place] for place in new.starts]
    return Reading(new.text, starts, [reading.ends[place - 1] for place in new.ends])


def _edited(text: str, edits: Iterable[Edit]) -> Reading:
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    at = 0
    for start, end, new, widths in edits:
        pieces += [text[at:start], new]
        starts += range(at, start)
        ends += range(at + 1, start + 1)
        if widths is None:
            starts += [start] * len(new)
            ends += [end] * len(new)
        else:
            for width in widths:
                starts.append(start)
                start += width
                ends.append(start)
        at = end
    pieces.append(text[at:])
    starts += range(at, len(text))
    ends += range(at + 1, len(text) + 1)
    return Reading("".join(pieces), starts, ends)
