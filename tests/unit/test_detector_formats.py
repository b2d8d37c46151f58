"""The formats that the documentation lists are found, and what only looks alike is not."""

from __future__ import annotations

from typing import Any

import pytest

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.privacy.builtin_detectors import BUILTIN_DETECTORS, SECRET_DETECTORS
from edgesdk.hybrid.privacy.detectors import Presidio, PrivateSpan, Terms, kinds_found_by
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.hybrid.privacy.redaction import Redactor

# What is private stands between the marks.
FOUND = {
    "CARD": [
        "Maestro «501800000009»",
        "«5018 0000 0009»",
        "«5018.0000.0009»",
        "«4111.1111.1111.1111»",
        "«4111_1111_1111_1111»",
        "«4111/1111/1111/1111»",
        "«4111 - 1111 - 1111 - 1111»",
        "«4111 1111\n1111 1111»",
        "«3782-822463-10005» 12/27",
        "«6304000000000000»",
    ],
    "SSN": [
        "«536-90-4399»",
        "«536.90.4399»",
        "SSN «536904399»",
        "ssn: «536 90 4399»",
        "My social security number is «536904399».",
    ],
    "PHONE": [
        "Appelez le «06 12 34 56 78»",
        "«06.12.34.56.78»",
        "«0612345678»",
        "«089/1234567»",
        "«(030) 901820»",
        "«06-12345678»",
        "«347 123 4567»",
        "電話は«090-1234-5678»です",
        "«03-1234-5678»",
        "«010-1234-5678»입니다",
        "«02-312-3456»",
        "«600 123 456»",
        "«22 123 45 67»",
        "«912 345 678»",
        "«(351) 912 345 678»",
        "«(11) 91234-5678»",
        "«8 (495) 123-45-67»",
        "«89161234567»",
        "«98765 43210» पर",
        "«9876512340»",
        "«022 2345 6789»",
        "Tel. «12 34 56»",
        "тел. «123-45-67»",
    ],
    "PASSWORD": [
        "Passwort: «geheim99»",
        "Mein Passwort ist «Sommer2024!»",
        "mot de passe : «soleil42»",
        "la contraseña es «Verano2024»",
        "senha é «Verao2024»",
        "hasło: «Zima2024!»",
        "пароль: «Zima2024»",
        "这是密码：«abc12345»。",
        "密码是«abc12345»",
        "パスワード: «hunter22»",
        "비밀번호는 «hunter22» 입니다",
        "password: «swordfish»",
        "password = '«correct horse»'",
        '{"password": "«swordfish»"}',
        "PIN: «1234»",
    ],
    "API_KEY": [
        "«sk-proj-" + "aB3x" * 5 + "»",
        "«xoxb-1234567890-abcdef»",
        "«xapp-1-A0123456789-abc»",
        "«AIza" + "aB3x_" * 7 + "»",
        "«GOCSPX-" + "aB3x" * 6 + "»",
        "«rk_live_" + "aB3x" * 5 + "»",
        "«github_pat_" + "aB3x" * 8 + "»",
        "aws_secret_access_key = «wJalr/K7MDENG/bPxRfiCYEXAMPLE1»",
        "token: «Zx81-qqpl-772»",
    ],
    "PRIVATE_KEY": [
        "«-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----»",
        "«-----BEGIN PGP PRIVATE KEY BLOCK-----\nlQOY\n-----END PGP PRIVATE KEY BLOCK-----»",
    ],
    "IBAN": ["«DE89370400440532013000»", "«DE89 3704 0044 0532 0130 00»"],
}
CLEAN = [
    "The password is hunter.",
    "Password: required",
    "password: str, token: Optional",
    "def login(user, password=None, pwd=pwd): passwd = getpass.getpass()",
    "token = get_token(request)",
    "On 2024-05-01 12:30:45, 01.02.2024 and 31/12/99 at 1700000000.",
    "From 2147483647 to 4294967295, 0123456789, 1234567890 and 99999999.",
    "0.4111111111111111 and 1.79769313486231e+308 and 0x4111111111111111",
    "2 3 5 7 11 13 17 19 23 29 31 37",
    "0000000000000000 and 1234 5678 9012 3457",
    "Version 3.11.7, commit df924a2b08a7e89f6e11251d4602022977af2670.",
    "1700000000000 milliseconds, 123,456,789 people, 12 345 678 items",
    "Room 12 345 in building 6789",
]


@pytest.mark.parametrize(
    ("kind", "marked"), [(kind, text) for kind, texts in FOUND.items() for text in texts]
)
def test_a_listed_format_is_found_whole(kind: str, marked: str) -> None:
    before, rest = marked.split("«")
    value, after = rest.split("»")
    redactor = Redactor(BUILTIN_DETECTORS)
    hidden = redactor.redact(before + value + after)
    ((placeholder, found),) = redactor.values.items()
    assert (placeholder.kind, found) == (kind, value)
    assert hidden == f"{before}{placeholder}{after}"


@pytest.mark.parametrize("text", CLEAN)
def test_what_looks_alike_stays(text: str) -> None:
    assert Redactor(BUILTIN_DETECTORS).redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "project falcon",
        "Project-Falcon",
        "PROJECT_FALCON.txt",
        "ProjectFalcon",
        "project.falcon",
        "project  \n falcon",
    ],
)
def test_words_of_a_term_may_be_joined(text: str) -> None:
    assert "alcon" not in Redactor([Terms(["Project Falcon"])]).redact(text).lower()


def test_signs_of_a_term_are_its_own() -> None:
    redactor = Redactor([Terms(["C++", "-x-"])])
    assert redactor.redact("Cat, C, x and c+") == "Cat, C, x and c+"
    assert "C++" not in redactor.redact("I like C++.")


class OfMany:
    kinds = ("BADGE", "DESK")

    def find(self, text: str) -> list[PrivateSpan]:
        return [PrivateSpan("BADGE", 0, 1)]


class OfNone:
    def find(self, text: str) -> list[PrivateSpan]:
        return []


def test_rules_are_for_kinds_that_a_detector_finds() -> None:
    policy = Policy(kinds={"DESK": "ask", "BADGE": "local_only"}, detectors=[OfMany()])
    assert policy.evaluate([{"role": "user", "content": "x"}]).upload == "local_only"
    assert kinds_found_by(OfNone()) == frozenset()
    with pytest.raises(InvalidOption, match="Did you mean EMAIL"):
        Policy(kinds={"EMIAL": "ask"})
    for detectors in ([OfNone()], [], BUILTIN_DETECTORS):
        with pytest.raises(InvalidOption, match="A kind that has a rule must be one of"):
            Policy(kinds={"BADGE": "ask"}, detectors=detectors)
    every = {kind: "ask" for detector in BUILTIN_DETECTORS for kind in kinds_found_by(detector)}
    Policy(kinds=every)  # type: ignore[arg-type]
    Policy(kinds={"CUSTOMER": "ask"}, detectors=[Terms(["x"], kind="CUSTOMER")])


def test_secrets_are_always_looked_for() -> None:
    assert Policy(detectors=()).detectors == SECRET_DETECTORS
    assert Policy().detectors == BUILTIN_DETECTORS
    allowed = Policy(detectors=(), kinds={"API_KEY": "allow", "PRIVATE_KEY": "allow"})
    assert (allowed.detectors, allowed.always_hidden) == ((), frozenset())
    assert Policy(kinds={"API_KEY": "ask"}).always_hidden == {"API_KEY", "PRIVATE_KEY"}


def test_an_entity_that_presidio_does_not_know() -> None:
    class Analyzer:
        def get_supported_entities(self, language: str) -> list[str]:
            return ["PERSON", "LOCATION"]

        def analyze(self, text: str, language: str, **_: Any) -> list[Any]:
            return []

    Presidio(Analyzer())
    with pytest.raises(InvalidOption, match="Did you mean PERSON"):
        Presidio(Analyzer(), entities=("PERSN",))


@pytest.mark.parametrize("kind", ["TEXT", "JSON_NUMBER"])
def test_kinds_of_the_redactor_itself_are_taken(kind: str) -> None:
    with pytest.raises(InvalidOption):
        Terms(["x"], kind=kind)
