"""The built-in detectors: patterns, and check digits where a number has them."""

from __future__ import annotations

import datetime
import ipaddress
import re

from stdnum import iban, luhn
from stdnum.iso7064 import mod_11_2

from edgesdk.hybrid.privacy.detectors import Detector, GroupedNumber, Pattern, PrivateUrls


def _is_card(digits: str) -> bool:
    return luhn.is_valid(digits) and digits.strip("0") != ""


def _is_iban(text: str) -> bool:
    # Most groups of letters are words, which the whole check would take long to refuse.
    return re.match(r"[A-Za-z]{2}\d\d", text) is not None and iban.is_valid(
        text, check_country=False
    )


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    # "::" alone is C++ and punctuation far more often than an address.
    return text != "::"


def _is_chinese_id(text: str) -> bool:
    """Check date and check digit (GB 11643-1999), but not the place: its registry changes."""
    try:
        datetime.date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    return mod_11_2.is_valid(text.upper())


def _is_international_phone(text: str) -> bool:
    return 8 <= len(re.sub(r"\D", "", text)) <= 15


def _is_uk_phone(text: str) -> bool:
    return len(re.sub(r"\D", "", text)) in (10, 11)


def _looks_random(text: str) -> bool:
    """Check that a value that is called a secret looks like one, not like a word."""
    return (len(text) >= 8 and bool(re.search(r"\d", text))) or len(text) >= 16


_NO_DIGIT_BEFORE = r"(?<![\d])(?<!\d[.\-])"
_NO_DIGIT_AFTER = r"(?!\d)"
_GAP = r"[\s.\-]?"


_KEYS = "|".join(
    [
        r"sk-[A-Za-z0-9_\-]{16,}",  # OpenAI, Anthropic, DeepSeek and those who follow them
        r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
        r"gh[pousr]_[A-Za-z0-9]{30,}",  # GitHub
        r"github_pat_[A-Za-z0-9_]{30,}",
        r"glpat-[A-Za-z0-9_\-]{18,}",  # GitLab
        r"(?:AKIA|ASIA)[A-Z0-9]{16}",  # AWS
        r"AIza[A-Za-z0-9_\-]{35}",  # Google
        r"ya29\.[A-Za-z0-9_\-]{20,}",
        r"xox[abposr]-[A-Za-z0-9\-]{10,}",  # Slack
        r"hf_[A-Za-z0-9]{30,}",  # Hugging Face
        r"(?:gsk|fw|r8|npm|dckr_pat|tgp_v1)_[A-Za-z0-9_\-]{24,}",  # Groq, Fireworks, Replicate, npm
        r"pypi-[A-Za-z0-9_\-]{40,}",
        r"SG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}",  # SendGrid
        r"LTAI[A-Za-z0-9]{12,}",  # Alibaba Cloud
        r"AKID[A-Za-z0-9]{28,}",  # Tencent Cloud
        r"eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}",  # RFC 7519
    ]
)

BUILTIN_DETECTORS: tuple[Detector, ...] = (
    Pattern(
        "PRIVATE_KEY",
        re.compile(
            r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----.*?"
            r"(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----|\Z)",
            re.DOTALL,
        ),
    ),
    PrivateUrls(),
    Pattern("API_KEY", re.compile(rf"(?<![A-Za-z0-9_\-])(?:{_KEYS})")),
    Pattern(
        "API_KEY",
        re.compile(
            r"(?<![A-Za-z])(?:bearer|basic)\s+(?P<secret>[A-Za-z0-9._~+/\-]{16,}=*)", re.IGNORECASE
        ),
    ),
    Pattern(
        "API_KEY",
        re.compile(
            r"(?:api[_\-\s]?key|access[_\-\s]?key|secret(?:[_\-\s]?key)?|auth[_\-\s]?token|token"
            r"|passw(?:or)?d|passphrase|pwd)[\"']?\s*(?:is|[:=：])\s*[\"']?"
            r"(?P<secret>[^\s\"',;，。]{6,})",
            re.IGNORECASE,
        ),
        _looks_random,
    ),
    Pattern(
        "EMAIL",
        re.compile(
            r"(?<![\w.+\-])[\w!#$%&'*+/=?^`{|}~\-](?:[\w.!#$%&'*+/=?^`{|}~\-]{0,62}"
            r"[\w!#$%&'*+/=?^`{|}~\-])?@"
            r"(?:[^\W_](?:[\w\-]{0,61}[^\W_])?\.)+[^\W\d_]{2,63}"
        ),
    ),
    GroupedNumber("IBAN", re.compile(r"[A-Za-z0-9]+"), 15, 34, _is_iban),
    Pattern(
        "CHINESE_ID",
        re.compile(r"(?<![A-Za-z0-9])[1-9]\d{16}[\dXx](?![A-Za-z0-9])"),
        _is_chinese_id,
    ),
    GroupedNumber("CARD", re.compile(r"[0-9]+"), 13, 19, _is_card),
    # Without the numbers that were never given out (Social Security Administration, RM 10201.035).
    Pattern(
        "SSN",
        re.compile(r"(?<![\d\-])(?!000|666|9)\d{3}[-\s](?!00)\d{2}[-\s](?!0000)\d{4}(?![\d\-])"),
    ),
    Pattern(
        "IP",
        re.compile(r"(?<![A-Za-z0-9_.])\d{1,3}(?:\.\d{1,3}){3}(?![A-Za-z0-9_]|\.\d)"),
        _is_ip,
    ),
    Pattern(
        "IP",
        re.compile(
            r"(?<![A-Za-z0-9_:.])(?=[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:)[0-9A-Fa-f:.]{2,45}(?<![.])(?![A-Za-z0-9_:])"
        ),
        _is_ip,
    ),
    # E.164: a plus, and up to 15 digits.
    Pattern(
        "PHONE",
        re.compile(
            rf"(?<![A-Za-z0-9_+])(?:\+|00(?=[1-9]))\s?\(?\d(?:[\s.\-()/]{{0,2}}\d){{6,14}}"
            rf"{_NO_DIGIT_AFTER}"
        ),
        _is_international_phone,
    ),
    # China: mobile numbers, and area code with number.
    Pattern(
        "PHONE",
        re.compile(
            rf"(?<!\d)(?:86{_GAP})?1[3-9]\d{_GAP}\d{{4}}{_GAP}\d{{4}}"
            rf"{_NO_DIGIT_AFTER}"
        ),
    ),
    Pattern(
        "PHONE",
        re.compile(rf"{_NO_DIGIT_BEFORE}\(?0[1-9]\d{{1,2}}\)?[\s\-]\d{{7,8}}{_NO_DIGIT_AFTER}"),
    ),
    # North American Numbering Plan.
    Pattern(
        "PHONE",
        re.compile(
            rf"{_NO_DIGIT_BEFORE}(?:1{_GAP})?(?:\([2-9]\d{{2}}\)\s?|[2-9]\d{{2}}{_GAP})"
            rf"[2-9]\d{{2}}{_GAP}\d{{4}}{_NO_DIGIT_AFTER}"
        ),
    ),
    # United Kingdom: a zero and ten digits (nine in a few places).
    Pattern(
        "PHONE",
        re.compile(
            rf"{_NO_DIGIT_BEFORE}\(?0[1-37]\d{{1,4}}\)?[\s\-]?\d{{3,4}}[\s\-]?\d{{3,4}}"
            rf"{_NO_DIGIT_AFTER}"
        ),
        _is_uk_phone,
    ),
)
