"""The built-in detectors: patterns, and check digits where a number has them."""

from __future__ import annotations

import datetime
import ipaddress
import re

from stdnum import iban, luhn
from stdnum.iso7064 import mod_11_2, mod_97_10

from edgesdk.hybrid.privacy.detectors import Detector, GroupedNumber, Pattern, PrivateUrls
from edgesdk.hybrid.privacy.phone_numbers import NationalPhones, is_well_known

# ISO/IEC 7812: the first digits of the networks that give out cards of 12 and 13 digits; longer
# cards begin with any digit but these.
_SHORT_CARDS = re.compile(r"50|5[6-8]|6|0604|4(?=\d{12}\Z)")
_NO_CARD = re.compile(r"0(?!604)|7|9(?!792)")


def _is_card(digits: str) -> bool:
    if _NO_CARD.match(digits) or (len(digits) < 14 and not _SHORT_CARDS.match(digits)):
        return False
    return luhn.is_valid(digits)


def _is_iban(text: str) -> bool:
    # Lengths of countries change; a right check digit of a long number is enough.
    long = text.isupper() and sum(map(str.isdigit, text)) >= 10
    return iban.is_valid(text, check_country=False) or (
        long and mod_97_10.is_valid(text[4:] + text[:4])
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


def _num_digits(text: str) -> int:
    return sum(map(str.isdecimal, text))


# A call, an attribute or an index in source code.
_EXPRESSION = re.compile(r"\(|[A-Za-z_][\w.]*[(\[{]|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+\Z|[$<{]")


def _looks_random(text: str) -> bool:
    """Check that a value that is called a secret looks like one, not like a word or like code."""
    if _EXPRESSION.match(text):
        return False
    return (len(text) >= 6 and re.search(r"\d", text) is not None) or len(text) >= 16


def _is_password(text: str) -> bool:
    """Check a value after "password:", which need not look random."""
    return not (_EXPRESSION.match(text) or _NO_PASSWORD.match(text))


# What documents and programs have after "password:".
_NO_PASSWORD = re.compile(
    r"(?:string|str|bytes|text|none|null|true|false|required|optional|password|passwd|pwd|secret|user"
    r"|hidden|empty|invalid|wrong|incorrect|missing|unknown|must|your|this|that|with|from|self|args"
    r"|only|also|when|authentication|protected|reset|manager|field|value|type|default|example)\W*\Z",
    re.IGNORECASE,
)


_NO_DIGIT_BEFORE = r"(?<![\d])(?<!\d[.\-])"
_NO_DIGIT_AFTER = r"(?!\d)"
_GAP = r"[\s.\-]?"


_KEYS = "|".join(
    [
        r"sk-[A-Za-z0-9_\-]{16,}",  # OpenAI, Anthropic, DeepSeek and those who follow them
        r"(?:xai|pplx|csk|nvapi)-[A-Za-z0-9_\-]{20,}",  # xAI, Perplexity, Cerebras, NVIDIA
        r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
        r"whsec_[A-Za-z0-9+/=]{24,}",
        r"gh[pousr]_[A-Za-z0-9]{30,}",  # GitHub
        r"github_pat_[A-Za-z0-9_]{30,}",
        r"glpat-[A-Za-z0-9_\-]{18,}",  # GitLab
        r"(?:AKIA|ASIA)[A-Z0-9]{16}",  # AWS
        r"AIza[A-Za-z0-9_\-]{35}",  # Google
        r"ya29\.[A-Za-z0-9_\-]{20,}",
        r"GOCSPX-[A-Za-z0-9_\-]{20,}",
        r"xox[abceposr]-[A-Za-z0-9.\-]{10,}",  # Slack
        r"xapp-[A-Za-z0-9\-]{10,}",
        r"hf_[A-Za-z0-9]{30,}",  # Hugging Face
        r"(?:gsk|fw|r8|npm|dckr_pat|tgp_v1)_[A-Za-z0-9_\-]{24,}",  # Groq, Fireworks, Replicate, npm
        r"pypi-[A-Za-z0-9_\-]{40,}",
        r"SG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}",  # SendGrid
        r"(?:shpat|shpss|sbp|dapi|lin_api|ntn|dop_v1)_?[A-Za-z0-9]{30,}",  # Shopify and others
        r"\d{8,10}:[A-Za-z0-9_\-]{35}",  # Telegram
        r"LTAI[A-Za-z0-9]{12,}",  # Alibaba Cloud
        r"AKID[A-Za-z0-9]{28,}",  # Tencent Cloud
        r"eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}",  # RFC 7519
    ]
)

# Names of passwords in the languages of many countries, and how a sentence goes on to the value.
_PASSWORD_NAMES = "|".join(
    [
        r"pass(?:w(?:or)?ds?)?|passphrase|passcode|pwd?|pw|passwort|kennwort|mot de passe|mdp",
        r"contrase(?:ñ|n)a|clave(?: de acceso)?|senha|palavra[- ]passe|parola(?: d'ordine)?",
        r"has(?:ł|l)o|парол[ьяюе]м?|wachtwoord|l(?:ö|o)senord|(?:ş|s)ifre|salasana|heslo|jelsz(?:ó|o)",
    ]
)
# In scripts without spaces a name may follow any letter.
_PASSWORD = (
    rf"(?:(?<![^\W\d_])(?:{_PASSWORD_NAMES}|mật khẩu)"
    r"|密码|密碼|口令|パスワード|暗証番号|비밀번호|암호|패스워드|पासवर्ड)"
)
_ASSIGNS = r"\s*[\"']?\s*(?:=>|[:=：])\s*"
_IS = (
    r"\s*(?:\s(?:is|ist|lautet|est|es|è|é|to|jest|brzmi|это|är)\s|[—是為为はが는은이가]|है|\s-\s)"
    r"\s*[:：]?\s*"
)

# Secrets of services and machines. They are hidden under every rule for uploads; see `Policy`.
SECRET_DETECTORS: tuple[Detector, ...] = (
    Pattern(
        "PRIVATE_KEY",
        re.compile(
            r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----.*?"
            r"(?:-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)",
            re.DOTALL,
        ),
    ),
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
            r"(?:api[_\-\s]?key|access[_\-\s]?key|secret(?:[_\-\s]?key)?|auth[_\-\s]?token|token)"
            r"[\"']?\s*(?:is|[:=：])\s*[\"']?(?P<secret>[^\s\"',;，。]{6,})",
            re.IGNORECASE,
        ),
        _looks_random,
    ),
)

BUILTIN_DETECTORS: tuple[Detector, ...] = (
    *SECRET_DETECTORS,
    PrivateUrls(),
    Pattern(
        "PASSWORD",
        re.compile(
            rf"{_PASSWORD}(?:{_ASSIGNS}|{_IS})(?P<secret>[^\s\"'`,;，。、]{{4,}})", re.IGNORECASE
        ),
        _looks_random,
    ),
    Pattern(
        "PASSWORD",
        re.compile(
            r"\b(?:PIN|CVV2?|CVC2?)\s?(?:is|ist|est|es|code|[:=：])\s?(?P<secret>\d{3,8})\b"
        ),
    ),
    # In quotes, or as the last word of its line.
    Pattern(
        "PASSWORD",
        re.compile(
            rf"{_PASSWORD}(?:{_ASSIGNS}(?P<quote>[\"'`])(?P<quoted>[^\"'`\n]{{4,128}})(?P=quote)"
            r"|\s*[:：]\s*(?P<secret>[^\s\"'`,;，。、]{4,})(?=\s*(?:$|[,;，。、])))",
            re.IGNORECASE | re.MULTILINE,
        ),
        _is_password,
    ),
    Pattern(
        "EMAIL",
        re.compile(
            r"(?<![\w.+\-])[\w!#$%&'*+/=?^`{|}~\-](?:[\w.!#$%&'*+/=?^`{|}~\-]{0,62}"
            r"[\w!#$%&'*+/=?^`{|}~\-])?@"
            r"(?:[^\W_](?:[\w\-]{0,61}[^\W_])?\.)+[^\W\d_]{2,63}"
        ),
    ),
    GroupedNumber(
        "IBAN", re.compile(r"[A-Za-z0-9]+"), 15, 34, _is_iban, first=re.compile(r"[A-Za-z]{2}\d\d")
    ),
    Pattern(
        "CHINESE_ID",
        re.compile(r"(?<![A-Za-z0-9])[1-9]\d{16}[\dXx](?![A-Za-z0-9])"),
        _is_chinese_id,
    ),
    GroupedNumber("CARD", re.compile(r"[0-9]+"), 12, 19, _is_card, min_group=3),
    # Without the numbers that were never given out (Social Security Administration, RM 10201.035).
    Pattern(
        "SSN",
        re.compile(
            r"(?<![\d\-])(?!000|666|9)\d{3}[-\s.](?!00)\d{2}[-\s.](?!0000)\d{4}(?![\d\-])"
            # Without hyphens where it is called so.
            r"|(?:\bSSN|\bsocial security(?: (?:number|no\.?|num))?)\b[^\d\n]{0,24}"
            r"(?P<secret>(?!000|666|9)\d{3}[-\s.]?(?!00)\d{2}[-\s.]?(?!0000)\d{4})(?!\d)",
            re.IGNORECASE,
        ),
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
            rf"(?<![A-Za-z0-9_+])(?:\+\s?\(?|00)[1-9](?:[\s.\-()/]{{0,2}}\d){{6,14}}"
            rf"{_NO_DIGIT_AFTER}"
        ),
        lambda text: 8 <= _num_digits(text) <= 15,
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
            rf"{_NO_DIGIT_BEFORE}(?<![A-Za-z0-9_])(?:1{_GAP})?(?:\([2-9]\d{{2}}\)\s?|[2-9]\d{{2}}{_GAP})"
            rf"[2-9]\d{{2}}{_GAP}\d{{4}}(?:\s?(?:x|ext\.?)\s?\d{{1,6}})?(?![A-Za-z0-9_])"
        ),
        lambda text: not is_well_known(text),
    ),
    # United Kingdom: a zero and ten digits (nine in a few places).
    Pattern(
        "PHONE",
        re.compile(
            rf"{_NO_DIGIT_BEFORE}\(?0[1-37]\d{{1,4}}\)?[\s\-]?\d{{3,4}}[\s\-]?\d{{3,4}}"
            rf"{_NO_DIGIT_AFTER}"
        ),
        lambda text: _num_digits(text) in (10, 11) and not is_well_known(text),
    ),
    NationalPhones(),
)
