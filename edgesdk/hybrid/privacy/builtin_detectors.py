"""The built-in detectors: patterns, and check digits where a number has them."""

from __future__ import annotations

import ipaddress
import re

from edgesdk.hybrid.privacy import checksums
from edgesdk.hybrid.privacy.detectors import Detector, GroupedNumber, Pattern, PrivateUrls


def _iban(text: str) -> bool:
    return checksums.iban(text.upper())


def _ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    # "::" alone is C++ and punctuation far more often than an address.
    return text != "::"


def _chinese_id(text: str) -> bool:
    return checksums.chinese_id(text.upper())


def _social(text: str) -> bool:
    area, group, serial = re.split(r"[-\s]", text)
    return checksums.social_security(area, group, serial)


def _international(text: str) -> bool:
    return 8 <= len(re.sub(r"\D", "", text)) <= 15


def _mixed(text: str) -> bool:
    """Whether a value that is called a secret looks like one, not like a word."""
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

BUILT_IN: tuple[Detector, ...] = (
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
        _mixed,
    ),
    Pattern(
        "EMAIL",
        re.compile(
            r"(?<![\w.+\-])[\w!#$%&'*+/=?^`{|}~\-](?:[\w.!#$%&'*+/=?^`{|}~\-]{0,62}"
            r"[\w!#$%&'*+/=?^`{|}~\-])?@"
            r"(?:[^\W_](?:[\w\-]{0,61}[^\W_])?\.)+[^\W\d_]{2,63}"
        ),
    ),
    GroupedNumber("IBAN", re.compile(r"[A-Za-z0-9]+"), 15, 34, _iban),
    Pattern(
        "CHINESE_ID",
        re.compile(r"(?<![A-Za-z0-9])[1-9]\d{16}[\dXx](?![A-Za-z0-9])"),
        _chinese_id,
    ),
    GroupedNumber("CARD", re.compile(r"[0-9]+"), 13, 19, checksums.luhn),
    Pattern("SSN", re.compile(r"(?<![\d\-])\d{3}[-\s]\d{2}[-\s]\d{4}(?![\d\-])"), _social),
    Pattern(
        "IP",
        re.compile(r"(?<![A-Za-z0-9_.])\d{1,3}(?:\.\d{1,3}){3}(?![A-Za-z0-9_]|\.\d)"),
        _ip,
    ),
    Pattern(
        "IP",
        re.compile(
            r"(?<![A-Za-z0-9_:.])(?=[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:)[0-9A-Fa-f:.]{2,45}(?<![.])(?![A-Za-z0-9_:])"
        ),
        _ip,
    ),
    # E.164: a plus, and up to 15 digits.
    Pattern(
        "PHONE",
        re.compile(
            rf"(?<![A-Za-z0-9_+])(?:\+|00(?=[1-9]))\s?\(?\d(?:[\s.\-()/]{{0,2}}\d){{6,14}}"
            rf"{_NO_DIGIT_AFTER}"
        ),
        _international,
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
        lambda text: len(re.sub(r"\D", "", text)) in (10, 11),
    ),
)
