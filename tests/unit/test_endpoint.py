"""What an endpoint's description refuses, before anything is sent."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.cloud.client import CloudClient
from edgesdk.hybrid.cloud.endpoint import Cloud, Timeouts

URL = "https://cloud.example/v1"
KEY = "sk-private-0123456789"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_url": "cloud.example/v1"}, "no base URL"),
        ({"base_url": "ftp://cloud.example"}, "no base URL"),
        ({"base_url": "https://"}, "no base URL"),
        ({"base_url": "https://cloud.example:99999/v1"}, "no base URL"),
        ({"base_url": "https://cloud.example:port/v1"}, "no base URL"),
        ({"base_url": "https://[::1/v1"}, "no base URL"),
        ({"base_url": "https://cloud\n.example/v1"}, "no base URL"),
        ({"base_url": "https://" + "a" * 70_000}, "no base URL"),
        ({"base_url": "https://me:word@cloud.example/v1"}, "no password"),
        ({"base_url": f"{URL}?key=1"}, "query"),
        ({"base_url": "http://cloud.example/v1"}, "unencrypted"),
        ({"base_url": "http://127.evil.example/v1"}, "unencrypted"),
        (
            {"base_url": "http://cloud.example/v1", "api_key": None, "headers": {"api-key": "k"}},
            "unencrypted",
        ),
        ({"api_key": "sk-schlüssel"}, "key"),
        ({"api_key": "sk-a\nHost: b"}, "key"),
        ({"api_key": "“sk-a”"}, "key"),
        ({"api_key": ""}, "key is empty"),
        ({"headers": {"X-Name": "Zoë"}}, "no HTTP header"),
        ({"headers": {"X Name": "a"}}, "no HTTP header"),
        ({"headers": {"X-Name": "a\r\nX-Other: b"}}, "no HTTP header"),
        ({"headers": {"Content-Length": "3"}}, "not for the app"),
        ({"input_price": float("nan")}, "price"),
        ({"output_price": -1.0}, "price"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tokens_field": "max_new_tokens"}, "max_tokens_field must be one of"),
        ({"omit": "temperature"}, "a list of names"),
        ({"verify": "no/such/file.pem"}, "does not exist"),
        ({"proxy": "proxy.example"}, "no URL of a proxy"),
        ({"proxy": "ftp://proxy.example"}, "no URL of a proxy"),
        ({"proxy": "http://me:secret-word@[::1"}, "no URL of a proxy"),
    ],
)
def test_what_is_wrong_is_said_at_once(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidOption, match=said) as raised:
        Cloud(**{"base_url": URL, "model": "m", "api_key": KEY, **changes})
    assert KEY not in str(raised.value)
    assert "secret-word" not in str(raised.value)


@given(st.text(max_size=30), st.text(max_size=10), st.text(max_size=20))
def test_any_text_is_an_endpoint_or_refused(url: str, model: str, key: str) -> None:
    with contextlib.suppress(InvalidOption):
        cloud = Cloud(url, model, key or None)
        assert cloud.name
        assert cloud.chat_url


@given(st.text(max_size=30))
def test_any_text_is_a_host_and_a_key_or_refused(text: str) -> None:
    for changes in ({"base_url": f"https://{text}/v1"}, {"api_key": text}, {"proxy": text}):
        with contextlib.suppress(InvalidOption):
            assert Cloud(**{"base_url": URL, "model": "m", **changes}).name


def test_a_key_may_end_in_a_line() -> None:
    assert Cloud(URL, "m", f"{KEY}\n").api_key == KEY


def test_secrets_are_not_shown() -> None:
    cloud = Cloud(URL, "m", KEY, headers={"X-Own": "own-secret"}, proxy="http://me:word@p.example")
    for secret in (KEY, "own-secret", "word"):
        assert secret not in repr(cloud)


def test_the_default_limits_leave_time_for_another_within_fifteen_seconds() -> None:
    limits = Timeouts()
    assert limits.until_first_token(last=False) <= 10
    assert limits.until_next_token(last=False) <= 10
    # Who is asked last may take longer.
    assert limits.until_first_token(last=True) == 30
    assert Timeouts(first_token=60).until_first_token(last=False) == 60


def test_certificates_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(InvalidOption, match="SSL_CERT_FILE"):
        CloudClient([Cloud(URL, "m")])
    monkeypatch.delenv("SSL_CERT_FILE")
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(InvalidOption, match="cannot be read"):
        CloudClient([Cloud(URL, "m", verify=tmp_path / "bad.pem")])
