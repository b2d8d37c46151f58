"""Why an endpoint refused, in all the shapes in which endpoints say it."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.errors import CloudBroken, CloudBusy, CloudError, CloudRefused
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.refusal import (
    error_for_status,
    error_in_band,
    hide_quotes,
    read_refusal,
    refusal_of,
    retry_after_of,
)

CLOUD = Cloud("https://cloud.example/v1", "m", "private-key-0123")


@pytest.mark.parametrize(
    ("body", "message", "code", "parameter"),
    [
        (
            {"error": {"message": "no", "type": "invalid_request_error", "param": "seed"}},
            "no", "invalid_request_error", "seed",
        ),
        ({"error": {"message": "no", "type": "a", "code": "b"}}, "no", "b", None),
        ({"error": {"message": "no", "code": 400, "status": "INVALID_ARGUMENT"}},
         "no", "INVALID_ARGUMENT", None),
        ([{"error": {"message": "no", "code": 429}}], "no", None, None),
        ({"error": "no"}, "no", None, None),
        ({"object": "error", "message": "no", "code": 40001}, "no", None, None),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "no"}},
         "no", "overloaded_error", None),
        ({"detail": "no"}, "no", None, None),
        ({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "no"}]},
         "no", "extra_forbidden", "seed"),
        ({"errors": [{"message": "no"}]}, "no", None, None),
        ({"message": "no", "request_id": "1"}, "no", None, None),
        (
            {"error": {"message": "Provider returned error", "code": 400,
                       "metadata": {"raw": "seed is no"}}},
            "Provider returned error: seed is no", None, None,
        ),
        ({"error": {}}, '{"error": {}}', None, None),
        ({"error": {"message": None}}, None, None, None),
        ("no", "no", None, None),
        ([], "[]", None, None),
        (None, "null", None, None),
    ],
)  # fmt: skip
def test_every_shape_says_why(
    body: object, message: str | None, code: str | None, parameter: str | None
) -> None:
    found = refusal_of(body)
    assert message is None or found.message == message
    assert (found.code, found.parameter) == (code, parameter)


def test_what_is_no_json_is_read_too() -> None:
    assert read_refusal("upstream connect error\n").message == "upstream connect error"
    for nothing in ("<html>bad gateway</html>", "", "[" * 60_000, "{'a'"):
        assert read_refusal(nothing).message == ""


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "5"}, 5),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": " 7 "}, 7),
        ({"retry-after": "-5"}, 0),
        ({"retry-after": "3600"}, 3600),
        ({"retry-after": "1e12"}, 21_600),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Wed, 99 Oct 2015 07:28:00 GMT"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "Sunday, 06-Nov-94 08:49:37 GMT"}, 0),
        ({"retry-after": "Sun Nov  6 08:49:37 1994"}, 0),
        # By the endpoint's clock, whatever the device's says.
        (
            {"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT",
             "date": "Wed, 21 Oct 2015 07:28:00 GMT"},
            30,
        ),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 21_600),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({}, None),
    ],
)  # fmt: skip
def test_how_long_to_wait_in_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_of(headers) == seconds


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        ({"message": "Please try again in 20s."}, 20),
        ({"message": "Please try again in 7.66s. Visit ..."}, 7.66),
        ({"message": "Please try again in 1m2.5s"}, 62.5),
        ({"message": "Please try again in 820ms"}, 0.82),
        ({"message": "Please try again in 3m"}, 180),
        ({"message": "Please retry in 34.07s"}, 34.07),
        ({"message": "Please retry after 10 seconds"}, 10),
        ({"message": "Please try again in a while"}, None),
        ({"message": "no", "details": [{"@type": "RetryInfo", "retryDelay": "34s"}]}, 34),
        ({"message": "no", "retry_after": 12}, 12),
        ({"message": "no", "retry_after": "12"}, None),
    ],
)
def test_how_long_to_wait_in_bodies(error: dict[str, object], seconds: float | None) -> None:
    assert refusal_of({"error": error}).retry_after == seconds


QUOTA = {"message": "You exceeded your current quota, please check your plan"}


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (429, {"message": "Rate limit reached"}, CloudBusy),
        (429, {**QUOTA, "code": "insufficient_quota"}, CloudRefused),
        (429, QUOTA, CloudRefused),
        # Gemini says so of a rate too, and then how long to wait.
        (429, {**QUOTA, "details": [{"retryDelay": "34s"}]}, CloudBusy),
        (403, {"message": "insufficient balance"}, CloudRefused),
        (402, {"message": "Insufficient Balance"}, CloudRefused),
        (401, {"message": "bad key"}, CloudRefused),
        (408, {}, CloudBusy),
        (500, {}, CloudBusy),
        (501, {}, CloudRefused),
        (529, {}, CloudBusy),
        (413, {}, CloudRefused),
    ],
)
def test_what_may_be_asked_again(
    status: int, error: dict[str, object], kind: type[CloudError]
) -> None:
    found = error_for_status(CLOUD, status, {}, refusal_of({"error": error}), {})
    assert type(found) is kind
    assert found.status == status


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 502, "message": "bad gateway"}, CloudBusy),
        ({"code": "429", "message": "slow down"}, CloudBusy),
        ({"type": "overloaded_error", "message": "Overloaded"}, CloudBusy),
        ({"message": "The server is overloaded"}, CloudBusy),
        ({"code": 401, "message": "no"}, CloudRefused),
        ({"code": "context_length_exceeded", "message": "no"}, CloudRefused),
        ({"code": "insufficient_quota", "message": "no"}, CloudRefused),
        ({"message": "something"}, CloudBroken),
    ],
)
def test_what_an_error_in_a_stream_means(error: dict[str, object], kind: type[CloudError]) -> None:
    assert type(error_in_band(CLOUD, refusal_of({"error": error}), {})) is kind


@pytest.mark.parametrize(
    ("message", "prompt", "shown"),
    [
        ("Bad key private-key-0123", "", "Bad key [...]"),
        ("Bad key sk-abc1****wxyz", "", "Bad key [...]"),
        ("Not allowed: 'tell me a joke'", "tell me a joke", "Not allowed: '[...]'"),
        ("Not about alice@a.example", "mail alice@a.example", "Not about [...]"),
        ("No 4711 here", "my pin is 4711", "No [...] here"),
        ("Names like Zoë", "who is Zoë?", "Names like [...]"),
        ("Names like Alice", "who is Alice Bo?", "Names like [...]"),
        ("the red house burns", "I see the red   house", "[...] burns"),
        # Words that anybody uses stay, so that the reason is a reason.
        ("the model is not found", "what is the model?", "the model is not found"),
        ("The context is 8192 tokens", "a context of tokens", "The context is 8192 tokens"),
    ],
)
def test_neither_secrets_nor_quotes_are_told(message: str, prompt: str, shown: str) -> None:
    sent = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
    assert hide_quotes(message, CLOUD, sent) == shown


@given(st.text(min_size=20, max_size=60), st.text(max_size=20), st.text(max_size=20))
def test_a_quoted_prompt_is_never_told(prompt: str, before: str, after: str) -> None:
    sent = {"messages": [{"role": "user", "content": prompt}]}
    told = hide_quotes(f"{before} '{' '.join(prompt.split())}' {after}", CLOUD, sent)
    assert len(told) <= 300
    whole = " ".join(prompt.split())
    if len(whole) >= 4 and whole not in "[...]":
        assert f" '{whole}' " not in told


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["error", "message", "code", "type", "param", "detail", "errors", "loc",
                         "msg", "metadata", "raw", "details", "retryDelay", "retry_after"]),
        inner, max_size=4),
    max_leaves=10,
))  # fmt: skip
def test_any_json_says_why_or_nothing(body: object) -> None:
    for found in (refusal_of(body), read_refusal(json.dumps(body))):
        with contextlib.suppress(UnicodeError):
            assert isinstance(found.message, str)
        assert isinstance(error_in_band(CLOUD, found, {}), CloudError)


@given(st.text(max_size=200))
def test_any_text_says_why_or_nothing(text: str) -> None:
    assert isinstance(read_refusal(text).message, str)
    assert retry_after_of({"retry-after": text, "date": text}) is None or text
