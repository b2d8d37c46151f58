"""References to models: every form round-trips, everything else is refused with advice."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.errors import InvalidOption
from edgesdk.store.download_plan import PlannedFile, plan_single_file
from edgesdk.store.reference import (
    CatalogReference,
    HubReference,
    PathReference,
    UrlReference,
    WheelReference,
    derive_name,
    is_model_name,
    parse_reference,
    safe_file_name,
)

_words = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
_members = st.from_regex(r"[A-Za-z0-9_*][A-Za-z0-9_*./-]{0,20}", fullmatch=True)
_hashes = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)


@given(project=_words, version=_words, member=_members)
def test_a_wheel_reference_survives_its_own_text(project: str, version: str, member: str) -> None:
    reference = WheelReference(project, version, member)
    assert parse_reference(str(reference)) == reference


@given(
    owner=_words,
    name=_words,
    revision=st.none() | st.from_regex(r"[a-z0-9][a-z0-9/._-]{0,10}", fullmatch=True),
    patterns=st.lists(_members, max_size=3),
)
def test_a_hub_reference_survives_its_own_text(
    owner: str, name: str, revision: str | None, patterns: list[str]
) -> None:
    reference = HubReference(f"{owner}/{name}", revision, tuple(patterns))
    assert parse_reference(str(reference)) == reference


@given(host=_words, file=_words, sha256=st.none() | _hashes)
def test_a_url_reference_survives_its_own_text(host: str, file: str, sha256: str | None) -> None:
    reference = UrlReference(f"https://{host}.example/{file}", sha256)
    assert parse_reference(str(reference)) == reference


@given(
    st.text(max_size=60)
    | st.builds("{}:{}".format, st.sampled_from(["pypi", "hf", "https"]), st.text(max_size=40))
)
def test_any_text_is_a_reference_or_is_refused_with_advice(text: str) -> None:
    try:
        name = parse_reference(text).default_name
    except InvalidOption as error:
        refusal = error
    else:
        assert is_model_name(name)
        return
    assert refusal.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SmolLM2-135M-Instruct", CatalogReference("smollm2-135m-instruct")),
        ("pypi:llm-x==1.0", WheelReference("llm-x", "1.0", "*.gguf")),
        ("hf:a/b", HubReference("a/b")),
        (
            "hf:a/b@refs/pr/3:*.gguf,LICENSE",
            HubReference("a/b", "refs/pr/3", ("*.gguf", "LICENSE")),
        ),
        ("http://127.0.0.1:8080/m.gguf", UrlReference("http://127.0.0.1:8080/m.gguf")),
        ("http://[::1]/m.gguf", UrlReference("http://[::1]/m.gguf")),
        ("/models/../m.gguf", PathReference(Path("/m.gguf"))),
        ("m.gguf", PathReference(Path.cwd() / "m.gguf")),
    ],
)
def test_forms(text: str, expected: object) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("pypi:llm-x", "exact version"),
        ("hf:just-a-name", "OWNER/REPO"),
        ("http://example.org/m.gguf", "unprotected"),
        ("http://127.0.0.1.example.org/m.gguf", "unprotected"),
        ("https://user:secret@example.org/m.gguf", "password"),
        ("https://example.org/m.gguf#sha256=12", "64 hexadecimal"),
        ("https://example.org/m.gguf#md5=12", "64 hexadecimal"),
        ("https://example.org/", "names no file"),
        ("https://example.org:port/m.gguf", "not an address"),
        ("ftp://example.org/m.gguf", "not an https:// address"),
        ("two words", "does not refer"),
        ("", "does not refer"),
    ],
)
def test_refusals_say_why(text: str, reason: str) -> None:
    with pytest.raises(InvalidOption, match=reason):
        parse_reference(text)


def test_a_refused_password_is_not_repeated() -> None:
    with pytest.raises(InvalidOption) as caught:
        parse_reference("https://user:secret@example.org/m.gguf")
    assert "secret" not in str(caught.value)


@given(st.text(max_size=120))
def test_a_derived_name_is_a_name(text: str) -> None:
    assert is_model_name(derive_name(text))


@given(st.text(max_size=60))
def test_a_safe_file_name_keeps_its_folders(text: str) -> None:
    assert safe_file_name(text).count("/") == text.count("/")


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "..\\evil", ""])
def test_a_planned_file_stays_inside_the_model(name: str) -> None:
    from edgesdk.errors import StoreError

    with pytest.raises(StoreError, match="outside"):
        PlannedFile(name, ())


def test_a_url_names_its_file() -> None:
    plan = plan_single_file(UrlReference("https://example.org/a%20b/my%20model.gguf?x=1", "0" * 64))
    assert [file.name for file in plan.files] == ["my_model.gguf"]
    assert plan.files[0].sha256 == "0" * 64
