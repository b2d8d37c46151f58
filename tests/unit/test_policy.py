"""The strictest rule wins, and what fails keeps the request on the device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.content import texts_in
from edgesdk.hybrid.privacy.detectors import PrivateSpan
from edgesdk.hybrid.privacy.policy import Policy, Upload

HELLO = [{"role": "user", "content": "Hello"}]
SECRET = [{"role": "user", "content": "Mail ann@x.io"}]


@pytest.mark.parametrize("rule", ["local_only", "ask", "redact", "allow"])
def test_the_default_holds_where_nothing_else_does(rule: Upload) -> None:
    assert Policy(default=rule).evaluate(HELLO).upload == rule


def test_a_call_speaks_for_itself() -> None:
    policy = Policy(default="local_only", tags={"public": "allow"})
    assert policy.evaluate(HELLO, call="allow").upload == "allow"
    assert policy.evaluate(HELLO, call="ask", tags=["public"]).upload == "ask"


def test_the_strictest_tag_wins_and_an_unknown_one_closes() -> None:
    policy = Policy(default="allow", tags={"health": "local_only", "work": "redact"})
    assert policy.evaluate(HELLO, tags=["work"]).upload == "redact"
    assert policy.evaluate(HELLO, tags=["work", "health"]).upload == "local_only"
    verdict = policy.evaluate(HELLO, tags=["wrok"])
    assert (verdict.upload, verdict.reason) == ("local_only", "tag 'wrok'")


def test_detectors_and_callables_only_tighten() -> None:
    policy = Policy(default="redact", kinds={"EMAIL": "ask"}, decide=lambda _: "allow")
    assert policy.evaluate(HELLO).upload == "redact"
    verdict = policy.evaluate(SECRET)
    assert (verdict.upload, verdict.reason) == ("ask", "found EMAIL")
    assert verdict.kinds == {"EMAIL"}
    closed = Policy(default="allow", decide=lambda _: "local_only")
    assert closed.evaluate(HELLO, call="allow").upload == "local_only"


class Broken:
    def find(self, text: str) -> Iterable[PrivateSpan]:
        raise OSError("no model")


def refuse(messages: Any) -> Upload | None:
    raise KeyError("user")


@pytest.mark.parametrize(
    "policy",
    [
        Policy(default="allow", detectors=[Broken()]),
        Policy(default="allow", decide=refuse),
        Policy(default="allow", decide=lambda _: "alow"),  # type: ignore[arg-type,return-value]
    ],
)
def test_what_fails_blocks_the_upload(policy: Policy) -> None:
    verdict = policy.evaluate(SECRET, call="allow")
    assert verdict.upload == "local_only"
    assert "failed" in verdict.reason


@pytest.mark.parametrize(
    "rules",
    [{"default": "yes"}, {"tags": {"a": "no"}}, {"kinds": {"EMAIL": "hide"}}, {"media": "no"}],
)
def test_rules_that_are_none(rules: Any) -> None:
    with pytest.raises(InvalidOption, match="local_only, ask, redact, allow"):
        Policy(**rules)


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
SEEN = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, PICTURE]}]


@pytest.mark.parametrize(
    ("rule", "media", "upload"),
    [
        ("redact", "local_only", "local_only"),
        ("redact", "ask", "ask"),
        ("redact", "redact", "redact"),
        ("redact", "allow", "redact"),
        ("allow", "local_only", "allow"),
        ("ask", "redact", "ask"),
    ],
)
def test_what_cannot_be_redacted_has_a_rule_of_its_own(
    rule: Upload, media: Upload, upload: Upload
) -> None:
    policy = Policy(default=rule, media=media)
    assert policy.evaluate(SEEN).upload == upload
    assert policy.evaluate(HELLO).upload == rule
    told = {"role": "tool", "content": [{"type": "input_audio", "input_audio": {"data": "A"}}]}
    assert policy.evaluate([told]).upload == upload


def test_pictures_stay_where_nothing_is_said_of_them() -> None:
    verdict = Policy().evaluate(SEEN)
    assert (verdict.upload, verdict.reason) == (
        "local_only",
        "image_url: nothing in it can be redacted",
    )


def test_every_text_of_a_message_is_looked_at() -> None:
    message = {
        "role": "assistant",
        "content": [{"type": "text", "text": "a"}],
        "tool_calls": [{"function": {"arguments": '{"to": "ann@x.io"}'}}],
        "n": 1,
        "none": None,
    }
    assert {"a", '{"to": "ann@x.io"}', "assistant"} <= set(texts_in(message))
    assert Policy(kinds={"EMAIL": "local_only"}).evaluate([message]).upload == "local_only"
