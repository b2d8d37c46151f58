"""What leaves as placeholders comes back exactly, however the answer was cut or mangled."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.privacy.builtin_detectors import BUILTIN_DETECTORS
from edgesdk.hybrid.privacy.detectors import PrivateSpan, Terms, merge_overlapping
from edgesdk.hybrid.privacy.redaction import (
    Placeholder,
    Redactor,
    StreamRestorer,
    restore,
    restore_json,
)

SECRETS = {
    "EMAIL": ["ann.lee+x@mail.example.co.uk", "名字@例子.公司", "o'neil@x.io"],
    "PHONE": [
        "+86 138 0013 8000",
        "13800138000",
        "138-0013-8000",
        "010-62345678",
        "+44 20 7946 0958",
        "020 7946 0958",
        "07700 900123",
        "+1 (415) 555-2671",
        "(415) 555-2671",
        "415.555.2671",
        "4155552671",
        "0049 30 901820",
    ],
    "CARD": ["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005"],
    "IBAN": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "NO93 8601 1117 947"],
    "IP": ["192.168.10.254", "2001:db8::ff00:42:8329", "::1", "fe80::1"],
    "URL": [
        "postgres://admin:s3cret@db.internal:5432/app",
        "https://x.example/cb?state=1&access_token=abc123",
    ],
    "API_KEY": [
        "sk-proj-abcdefghijklmnop1234",
        "ghp_" + "a1B2" * 9,
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4",
        "hf_" + "aB3" * 11,
    ],
    "SSN": ["536-90-4399", "536 90 4399"],
    "CHINESE_ID": ["11010519491231002X", "440524188001010014"],
    "PRIVATE_KEY": ["-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"],
}
EVERY = [(kind, value) for kind, values in SECRETS.items() for value in values]
PLAIN = [
    "Version 1.2.3.4.5 of std::vector came out on 2024-05-01 at 12:30:45.",
    "Order 4111 1111 1111 1112 has 17 items, 3.14159 each; see RFC 7231.",
    "ID 110105194912310021 is not one; 000-12-3456 and 666-12-3456 neither.",
    "GB82WEST12345698765431 has a wrong check digit.",
    "See https://example.org/a?page=2#top or mail us @ home.",
    "999.1.2.3 is no address, nor is 1.2.3.",
    "The password is hunter.",
]


@pytest.mark.parametrize(("kind", "value"), EVERY)
@pytest.mark.parametrize(
    "frame", ["{}", "Call me: {}, thanks.", "这是{}。", '{{"x": "{}"}}', "({})"]
)
def test_secrets_leave_as_placeholders_of_their_kind(kind: str, value: str, frame: str) -> None:
    redactor = Redactor(BUILTIN_DETECTORS)
    text = frame.format(value)
    hidden = redactor.redact(text)
    assert value not in hidden
    assert [placeholder.kind for placeholder in redactor.values] == [kind]
    # Where the words around have no spaces, more than the secret may be taken.
    assert value in next(iter(redactor.values.values()))
    assert restore(redactor, hidden) == text


@pytest.mark.parametrize("text", PLAIN)
def test_what_only_looks_like_a_secret_stays(text: str) -> None:
    assert Redactor(BUILTIN_DETECTORS).redact(text) == text


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ('API_KEY="Zx81-qqpl-772"', "Zx81-qqpl-772"),
        ("my password is tr0ub4dor&3", "tr0ub4dor&3"),
        ("Authorization: Bearer abcdef0123456789ABCDEF", "abcdef0123456789ABCDEF"),
        ("Card 4111 1111 1111 1111 12/27 123", "4111 1111 1111 1111"),
        ("IBAN DE89 3704 0044 0532 0130 00 thanks a lot", "DE89 3704 0044 0532 0130 00"),
        ("密码 password：abc12345。", "abc12345"),
    ],
)
def test_secrets_are_found_by_what_is_around_them(text: str, secret: str) -> None:
    redactor = Redactor(BUILTIN_DETECTORS)
    assert secret not in redactor.redact(text)
    assert secret in redactor.values.values()


def test_one_value_has_one_name_in_a_conversation_and_another_in_the_next() -> None:
    text = "ann@x.io and bob@x.io and ann@x.io"
    redactor = Redactor(BUILTIN_DETECTORS)
    first, _, second, _, third = redactor.redact(text).split()
    assert first == third != second
    assert redactor.redact("ann@x.io") == first
    names = {Redactor(BUILTIN_DETECTORS).redact("ann@x.io") for _ in range(40)}
    assert len(names) > 20
    other = Redactor(BUILTIN_DETECTORS)
    other.redact("phone 415-555-2671")
    assert restore(other, first) == first


def test_a_vault_goes_on_where_it_was() -> None:
    redactor = Redactor(BUILTIN_DETECTORS)
    hidden = redactor.redact("ann@x.io")
    later = Redactor(BUILTIN_DETECTORS, values=redactor.values)
    assert later.redact("ann@x.io") == hidden
    assert restore(later, hidden) == "ann@x.io"
    assert later.redact("bob@x.io") not in (hidden, "bob@x.io")


@pytest.mark.parametrize(
    "mangle",
    [
        "<{kind}_{number}>",
        "<{low}_{number}>",
        "< {kind}_{number} >",
        "<{kind} {number}>",
        "[{kind}_{number}]",
        "{{{kind}_{number}}}",
        "{kind}_{number}",
        "{low}-{number}",
        "<{kind}\\_{number}>",
        "<{kind}_{number}",
        "【{kind}_{number}】",
    ],
)
def test_slightly_mangled_placeholders_come_back(mangle: str) -> None:
    redactor = Redactor([Terms(["Project Falcon"], kind="PROJECT_NAME"), *BUILTIN_DETECTORS])
    redactor.redact("Project Falcon, ann@x.io")
    for placeholder, value in redactor.values.items():
        kind = placeholder.kind
        written = mangle.format(kind=kind, low=kind.lower(), number=placeholder.number)
        assert restore(redactor, f"Of {written}: yes.") == f"Of {value}: yes."


def test_brackets_around_more_than_the_placeholder_stay() -> None:
    redactor = Redactor(BUILTIN_DETECTORS)
    name = redactor.redact("ann@x.io").strip("<>")
    assert restore(redactor, f"[see {name}]") == "[see ann@x.io]"
    assert restore(redactor, f"[{name} or me]") == "[ann@x.io or me]"
    assert restore(redactor, f"(<{name}>)") == "(ann@x.io)"
    assert restore(redactor, f"x{name} {name}0") == f"x{name} {name}0"


def test_text_that_reads_as_a_placeholder_comes_back_as_it_was() -> None:
    redactor = Redactor(BUILTIN_DETECTORS)
    hidden = redactor.redact("ann@x.io")
    text = f"Why does {hidden} or {hidden.lower()} stand there, ann@x.io?"
    assert restore(redactor, redactor.redact(text)) == text


def test_tool_arguments_are_restored_as_values() -> None:
    redactor = Redactor([Terms(['a "quoted" name'])])
    hidden = redactor.redact('a "quoted" name')
    found = restore_json(redactor, {"to": [hidden, 3], hidden: {"x": f"Dear {hidden}"}})
    name = 'a "quoted" name'
    assert found == {"to": [name, 3], name: {"x": f"Dear {name}"}}


def test_terms_are_whole_words_in_any_case() -> None:
    redactor = Redactor([Terms(["Ann Lee", "acme", "王小明"])])
    hidden = redactor.redact("ANN  lee of ACME, academe, acmes; 我是王小明。")
    assert "lee" not in hidden.lower()
    assert "academe, acmes" in hidden
    assert "王小明" not in hidden


@pytest.mark.parametrize(
    ("terms", "kind"), [(["x", " "], "TERM"), (["x"], "term"), (["x"], "A_B_C")]
)
def test_terms_that_cannot_be_hidden_are_refused(terms: list[str], kind: str) -> None:
    with pytest.raises(InvalidOption):
        Terms(terms, kind=kind)


def test_overlapping_findings_leave_nothing_over() -> None:
    findings = [
        PrivateSpan("A", 0, 4),
        PrivateSpan("B", 2, 9),
        PrivateSpan("C", 9, 12),
        PrivateSpan("D", 5, 5),
    ]
    assert merge_overlapping(findings) == [PrivateSpan("B", 0, 9), PrivateSpan("C", 9, 12)]


noise = st.text(alphabet="<>[]{} _-:0123456789aeilmxEMAILTXn\\\n例", max_size=30)
secret = st.sampled_from([value for _, value in EVERY])
texts = st.lists(noise | secret, max_size=6).map("".join)


@given(st.lists(texts, min_size=1, max_size=4))
@example(["<ann@x.io>", "ann@x.io1", "EMAIL ann@x.io"])
def test_round_trip_is_exact(conversation: list[str]) -> None:
    redactor = Redactor(BUILTIN_DETECTORS)
    hidden = [redactor.redact(text) for text in conversation]
    assert [restore(redactor, text) for text in hidden] == conversation


@given(texts, st.lists(st.integers(0, 200), max_size=8))
def test_a_stream_gives_what_the_whole_gives(text: str, cuts: list[int]) -> None:
    redactor = Redactor(BUILTIN_DETECTORS)
    answer = redactor.redact(text) + noise_after(redactor)
    stream = StreamRestorer(redactor)
    at, pieces = 0, []
    for cut in [*sorted(cuts), len(answer)]:
        pieces.append(stream.feed(answer[at:cut]))
        at = max(at, cut)
    assert "".join([*pieces, stream.flush()]) == restore(redactor, answer)


def noise_after(redactor: Redactor) -> str:
    return "".join(
        f" {placeholder.kind.lower()} {placeholder.number}, [{placeholder}] {placeholder.kind}_"
        for placeholder in redactor.values
    )


def test_a_stream_holds_back_no_more_than_it_must() -> None:
    redactor = Redactor(BUILTIN_DETECTORS)
    hidden = redactor.redact("ann@x.io")
    stream = StreamRestorer(redactor)
    assert stream.feed("Write to ") == "Write to "
    assert stream.feed(hidden[:4]) == ""
    assert stream.feed(hidden[4:]) + stream.feed(" now") == "ann@x.io now"
    assert stream.feed(" a < b") == " a < b"
    assert str(Placeholder("EMAIL", 7)) == "<EMAIL_7>"
