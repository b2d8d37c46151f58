"""Check digits: what tells a real number from one that only looks like it."""

from __future__ import annotations

import datetime
import string

# ISO 13616 registry: how long an IBAN of each country is.
IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22,
    "BI": 27, "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27,
    "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27,
    "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HN": 28, "HR": 21, "HU": 28,
    "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28,
    "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22,
    "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23,
    "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24,
    "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28,
    "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip

_CHINESE_WEIGHTS = [2 ** (17 - i) % 11 for i in range(17)]
_CHINESE_DIGITS = "10X98765432"


def luhn(digits: str) -> bool:
    """Payment cards: ISO/IEC 7812-1, annex B."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0 and digits.strip("0") != ""


def iban(text: str) -> bool:
    """ISO 13616: the length of its country, and ISO/IEC 7064 mod 97-10. No spaces, capitals."""
    if IBAN_LENGTHS.get(text[:2]) != len(text) or not text[2:4].isdigit():
        return False
    moved = text[4:] + text[:4]
    values = string.digits + string.ascii_uppercase
    return int("".join(str(values.index(letter)) for letter in moved)) % 97 == 1


def chinese_id(text: str) -> bool:
    """GB 11643-1999: a date of birth, and ISO 7064 mod 11-2. 18 characters, X in capitals."""
    try:
        datetime.date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    total = sum(
        int(digit) * weight for digit, weight in zip(text[:17], _CHINESE_WEIGHTS, strict=True)
    )
    return _CHINESE_DIGITS[total % 11] == text[17]


def social_security(area: str, group: str, serial: str) -> bool:
    """US SSN: numbers that were never given out (Social Security Administration, RM 10201.035)."""
    return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"
