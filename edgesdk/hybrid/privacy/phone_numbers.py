"""Finds phone numbers as they are written within a country, without its code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from edgesdk.hybrid.privacy.detectors import PrivateSpan

_MIN_DIGITS, _MAX_DIGITS, _MAX_GROUPS = 6, 13, 6
_GROUP = re.compile(r"[0-9]+")
_JOINER = re.compile(r" ?[.\-/]? ?|[ .\-/]?\(|\)[ .\-/]?")
_WORD = re.compile(r"[A-Za-z0-9_]")
# A number that stands within another one, such as a decimal, a date or a version.
_CHAIN_BEFORE = re.compile(r"[0-9][.,:/\-]\Z")
_CHAIN_AFTER = re.compile(r"[.,:/\-][0-9]")
_DATE = re.compile(
    r"(?:19|20)[0-9]{2}[-./ ][01]?[0-9][-./ ][0-3]?[0-9]"
    r"|[0-3]?[0-9][-./][0-3]?[0-9][-./](?:19|20)?[0-9]{2}"
)
_COUNTING = "01234567890123456789 98765432109876543210"
# Bounds of integers of 32 bits, which are in many documents.
_BOUNDS = frozenset({"2147483647", "2147483648", "4294967295", "4294967296"})
# What stands before a number that is somebody's, in the languages of `NationalPhones.regions`.
_CONTEXT = re.compile(
    r"(?:\b(?:tel|telefon\w*|phone|mobile|cell|cellphone|fax|call|dial|text me|sms|whatsapp"
    r"|t[ée]l[ée]phone|portable|appel\w*|joindre|handy\w*|mobil\w*|rufnummer|durchwahl|anruf\w*"
    r"|telefono|cellulare|chiam\w*|kom[óo]rk\w*|zadzwo[ńn]\w*|dzwo[ńn]\w*|telefone|telem[óo]vel"
    r"|celular|contacto|contato|lig(?:ue|ar|a)|m[óo]vil|llam\w*|тел|телефон\w*|моб|мобильн\w*"
    r"|звон\w*|позвон\w*)\b|电话|手机|電話|携帯|전화|휴대폰|휴대전화|핸드폰|연락처|फ़?ोन|मोबाइल|टेलीफोन|कॉल)"
    r"[^\n!?;]{0,24}\Z",
    re.IGNORECASE,
)
_CONTEXT_LENGTH = 48


@dataclass(frozen=True)
class NationalPhones:
    """Finds national phone numbers, which Google's metadata (`phonenumbers`) knows as assigned.

    Numbers in groups count where the groups are those of a country. Others count where they have
    a length and a beginning that few other numbers have, or where a word such as "Tel." or "電話"
    stands before them.

    Attributes:
        regions: ISO 3166 codes of the countries.
    """

    regions: tuple[str, ...] = (
        "FR", "DE", "IT", "JP", "KR", "PL", "PT", "RU", "IN", "BR", "ES", "NL", "AT", "CH", "BE",
        "SE",
    )  # fmt: skip

    kind = "PHONE"

    def find(self, text: str) -> Iterator[PrivateSpan]:
        """See `edgesdk.hybrid.privacy.detectors.Detector.find`."""
        groups = [found.span() for found in _GROUP.finditer(text)]
        at = 0
        while at < len(groups):
            last = self._last(text, groups, at)
            if last is None:
                at += 1
                continue
            start, end = groups[at][0], groups[last][1]
            if text[start - 1 : start] == "(":
                start -= 1
            yield PrivateSpan(self.kind, start, end)
            at = last + 1

    def _last(self, text: str, groups: Sequence[tuple[int, int]], first: int) -> int | None:
        """Return the last group of a number that begins with group `first`; None if none does."""
        start = groups[first][0]
        before = text[max(0, start - 2) : start]
        if before and (
            _WORD.match(before[-1]) or before[-1] == "+" or _CHAIN_BEFORE.search(before)
        ):
            return None
        last, count = first, 0
        runs: list[int] = []
        while last < len(groups) and last - first < _MAX_GROUPS:
            count += groups[last][1] - groups[last][0]
            joiner = text[groups[last - 1][1] : groups[last][0]]
            if count > _MAX_DIGITS or (last > first and not _JOINER.fullmatch(joiner)):
                break
            if count >= _MIN_DIGITS:
                runs.append(last)
            last += 1
        if not runs:
            return None
        called = _CONTEXT.search(text[max(0, start - _CONTEXT_LENGTH) : start]) is not None
        for end in reversed(runs):
            after = text[groups[end][1] : groups[end][1] + 2]
            if after and (_WORD.match(after) or _CHAIN_AFTER.match(after)):
                continue
            written = text[start : groups[end][1]]
            parts = [text[slice(*groups[index])] for index in range(first, end + 1)]
            if not _is_date(written, parts) and (called or self._is_phone(written, parts)):
                return end
        return None

    def _is_phone(self, written: str, groups: list[str]) -> bool:
        digits, sizes = "".join(groups), tuple(map(len, groups))
        if len(groups) == 1:
            return not is_well_known(digits) and self._is_bare_phone(digits)
        if groups[0][0] == "0":
            return _is_trunk_shape(written, sizes) or (
                2 <= sizes[0] <= 5 and min(sizes) >= 2 and self._is_assigned(digits)
            )
        if len(digits) == 11 and digits[0] in "78" and (sizes[0] == 4 or sizes[:2] == (1, 3)):
            # Russia: 8, area code, and the rest in any groups.
            return True
        if _is_north_american_shape(written, sizes):
            return True
        if sizes in ((2, 4, 4), (2, 5, 4)) and "-" in written:
            # Brazil, and Japan without its zero.
            return True
        if sizes[0] <= 3 and len(digits) >= 10 and _is_country_code(groups[0]):
            # The code of a country without its plus.
            return written[sizes[0]] == ")" or _is_assigned("+" + digits, None)
        return sizes in _SHAPES and self._is_assigned(digits)

    def _is_bare_phone(self, digits: str) -> bool:
        """Whether digits in a row are a phone number: few other numbers look so."""
        match len(digits), digits[0]:
            case (9 | 10 | 11, "0"):
                return self._is_assigned(digits)
            case (9, "2" | "3" | "6" | "7" | "9"):
                return self._is_assigned(digits)
            case (10, _):
                # One that begins with 1 is far more often a time, in seconds since 1970.
                return digits[0] != "1" and self._is_assigned(digits)
            case (11, "8"):
                return "RU" in self.regions
            case (11, "7") if digits[1] in "3489":
                return "RU" in self.regions
            case (11, "3"):
                return self._is_assigned(digits)
            case (11, _):
                return digits[2] == "9" and "BR" in self.regions and _is_assigned(digits, "BR")
            case (12, "9"):
                return digits.startswith("91") and _is_assigned("+" + digits, None)
        return False

    def _is_assigned(self, digits: str) -> bool:
        return any(_is_assigned(digits, region) for region in self.regions)


# Sizes of groups in which numbers without a leading zero are written.
_SHAPES = frozenset(
    {
        *((3, 3, 3), (2, 3, 2, 2), (2, 3, 4), (2, 7), (3, 2, 2, 2), (1, 4, 4)),  # PL, PT, ES
        *((5, 5), (2, 8), (3, 7), (4, 6), (2, 4, 4), (3, 3, 4), (4, 3, 3)),  # IN, IT, BR
        *((3, 3, 2, 2), (3, 2, 2, 3), (2, 5, 4)),  # IT, RU, BR
    }
)


def is_well_known(digits: str) -> bool:
    """Whether digits in a row are no phone number, though they might be one."""
    return digits in _COUNTING or digits in _BOUNDS or len(set(digits)) == 1


def _is_date(written: str, groups: list[str]) -> bool:
    if _DATE.match(written) is None:
        return False
    # A time may follow a date, with other separators; "06.12.34.56.78" is a phone number.
    return len(groups) <= 3 or len(set(re.sub(r"[0-9]", "", written))) > 1


def _is_trunk_shape(written: str, sizes: tuple[int, ...]) -> bool:
    """Whether groups after a leading zero are those of a phone number, assigned or not."""
    total = sum(sizes)
    if sizes == (2, 2, 2, 2, 2):
        return written[1] != "0"  # France
    if len(sizes) == 3:  # Japan, Korea
        grouped = written[1] != "0" and sizes[0] <= 5 and sizes[2] == 4
        return grouped and "-" in written and 9 <= total <= 11
    # Germany, Austria, the Netherlands
    return len(sizes) == 2 and 3 <= sizes[0] <= 5 and sizes[1] >= 5 and 9 <= total <= 12


def _is_north_american_shape(written: str, sizes: tuple[int, ...]) -> bool:
    """Whether groups are those of the North American Numbering Plan, assigned or not."""
    return sizes in ((3, 3, 4), (1, 3, 3, 4)) and (
        ")" in written or written.count("-") > 1 or written.count(".") > 1
    )


def _is_country_code(digits: str) -> bool:
    import phonenumbers

    return int(digits) in phonenumbers.COUNTRY_CODE_TO_REGION_CODE


@lru_cache(maxsize=4096)
def _is_assigned(digits: str, region: str | None) -> bool:
    # Its metadata takes a moment to load, and many texts have no such number.
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(digits, region))
    except phonenumbers.NumberParseException:
        return False
