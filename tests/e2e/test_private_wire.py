"""What is captured on the wire: nothing that is to stay, and nothing after a typo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.fake_engine import FakeEngine, fake_model
from support.talking_cloud import TalkingCloud, echo, last

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.privacy.builtin_detectors import BUILTIN_DETECTORS
from edgesdk.hybrid.privacy.detectors import Terms
from edgesdk.hybrid.privacy.policy import Policy

pytestmark = pytest.mark.e2e

UNSURE = Confidence(threshold=2.0, abort_below=0.0)
DETECTORS = (Terms(["Jürgen Groß", "王小明"], kind="NAME"), *BUILTIN_DETECTORS)
# Of the shape that makers give their keys; nobody's.
KEY = "sk-" + "ant-api03-" + "aB3x" * 9
# The values as a wire could have them, however they are written in a request.
SECRETS = ("Jürgen", "王小明", "ann.lee", "4111", "swordfish", KEY)


@pytest.fixture
def cloud() -> Iterator[TalkingCloud]:
    with TalkingCloud(echo) as server:
        yield server


def client(cloud: TalkingCloud, policy: Policy | None = None, **changes: Any) -> HybridClient:
    model = fake_model(FakeEngine(b"I am not sure."))
    return HybridClient(model, cloud=cloud.cloud(), policy=policy, confidence=UNSURE, **changes)


def user(*texts: str) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": text} for text in texts]
    return [{"role": "user", "content": parts if len(parts) > 1 else texts[0]}]


RESULT = json.dumps(
    {"name": "Jürgen Groß", "mail": "ann.lee@mail.example\n", "n": 4111111111111111}
)
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "Look it up"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "a1",
                "type": "function",
                "function": {
                    "name": "look",
                    "arguments": json.dumps({"password": "swordfish", "who": "王小明"}),
                },
            }
        ],
    },
    {"role": "tool", "tool_call_id": "a1", "content": RESULT},
]
PRIVATE: dict[str, list[dict[str, Any]]] = {
    "plain": user("I am Jürgen Groß."),
    "escaped in a tool result": CALLED,
    "escaped in a text": user(f"The tool said {RESULT}"),
    "full width": user("It is ａｎｎ．ｌｅｅ＠ｍａｉｌ．ｅｘａｍｐｌｅ"),
    "zero width": user("It is " + "\u200b".join("ann.lee@mail.example")),
    "in a URL": user("See https://x.example/?q=J%C3%BCrgen%20Gro%C3%9F"),
    "split over parts": user("My card is 4111 1111", "1111 1111, and that is all"),
    "split over messages": [*user("My card is 4111 1111"), *user("1111 1111")],
    "two letters in the next part": user("I am Jürgen Gro", "ß and well"),
    "a number": [{"role": "user", "content": "Hi", "card": 4111111111111111}],
}


@pytest.mark.parametrize("name", PRIVATE)
def test_kinds_that_stay_leave_no_byte(cloud: TalkingCloud, name: str) -> None:
    kinds = Policy(detectors=DETECTORS).evaluate(PRIVATE[name]).kinds
    assert kinds
    for kind in kinds:
        policy = Policy(kinds={kind: "local_only"}, detectors=DETECTORS)
        with client(cloud, policy) as ours:
            assert ours.respond(PRIVATE[name], prefer="cloud").route == "local"
    assert cloud.requests == []


@pytest.mark.parametrize("name", PRIVATE)
def test_what_is_redacted_is_not_on_the_wire(cloud: TalkingCloud, name: str) -> None:
    with client(cloud, Policy(detectors=DETECTORS)) as ours:
        reply = ours.respond(PRIVATE[name], prefer="cloud")
    assert reply.route == "cloud"
    (request,) = cloud.requests
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    wire = json.dumps(body, ensure_ascii=False)
    assert not [secret for secret in (*SECRETS, "1111 1111", "Groß") if secret in wire]
    for message in body["messages"]:
        for call in message.get("tool_calls", ()):
            json.loads(call["function"]["arguments"])
        if message["role"] == "tool":
            json.loads(message["content"])
    said = PRIVATE[name][-1]["content"]
    if isinstance(said, str) and not said.endswith("}"):
        # The cloud said the text again, and the app has the values in it.
        assert reply.text == said
    elif isinstance(said, str):
        assert json.loads(reply.text[reply.text.index("{") :]) == json.loads(RESULT)


@pytest.mark.parametrize("prefer", [None, "cloud"])
@pytest.mark.parametrize(
    "rules",
    [
        {"policy": Policy("local_only")},
        {"policy": Policy("allow", decide=lambda _: "local_only")},
        {"policy": Policy("allow", decide=lambda _: 1 / 0)},
        {"policy": Policy("allow", tags={"health": "local_only"}), "tags": ["health"]},
        {"policy": Policy("allow", tags={"health": "local_only"}), "tags": "health"},
        {"policy": Policy("allow", tags={"health": "local_only"}), "tags": ["heatlh"]},
        {"policy": Policy("ask")},
        {"policy": Policy("ask", ask=lambda _: "yes")},  # type: ignore[arg-type,return-value]
        {"policy": Policy("allow"), "upload": "local_only"},
    ],
)
def test_what_is_to_stay_leaves_no_byte(
    cloud: TalkingCloud, rules: dict[str, Any], prefer: Any
) -> None:
    options = {key: value for key, value in rules.items() if key != "policy"}
    with client(cloud, rules["policy"]) as ours:
        assert ours.respond("Hi", prefer=prefer, **options).route == "local"
        assert ours.chat().respond("Hi", prefer=prefer, **options).route == "local"
    assert cloud.requests == []


@pytest.mark.parametrize(
    "typo",
    [
        {"prefer": "Local"},
        {"prefer": "locale"},
        {"upload": "local"},
        {"upload": "Local_only"},
        {"uplaod": "local_only"},
        {"preffer": "local"},
        {"tag": ["health"]},
    ],
)
def test_a_typo_in_a_call_leaves_no_byte(cloud: TalkingCloud, typo: dict[str, Any]) -> None:
    with client(cloud, Policy("allow")) as ours:
        with pytest.raises(InvalidOption):
            ours.respond("Hi", **typo)
        with pytest.raises(InvalidOption):
            ours.chat().respond("Hi", **typo)
    assert cloud.requests == []


@pytest.mark.parametrize(
    "typo",
    [
        {"default": "local-only"},
        {"media": "local"},
        {"tags": {"health": "lokal_only"}},
        {"kinds": {"EMAIL": "local only"}},
        {"kinds": {"E_MAIL": "local_only"}},
        {"kinds": {"email": "local_only"}},
        {"kinds": {"NAME": "local_only"}},
    ],
)
def test_a_typo_in_a_policy_makes_none(typo: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match="must be one of"):
        Policy(**typo)


@pytest.mark.parametrize("upload", ["allow", "ask", "redact"])
def test_keys_do_not_leave_under_any_rule(cloud: TalkingCloud, upload: Any) -> None:
    policy = Policy(upload, ask=lambda _: True, detectors=())
    text = f"Why does {KEY} fail for ann.lee@mail.example?"
    with client(cloud, policy) as ours:
        reply = ours.respond(text, prefer="cloud")
    assert (reply.route, reply.text) == ("cloud", text)
    assert KEY.encode() not in cloud.sent()
    assert b"ann.lee" in cloud.sent()


def test_keys_leave_where_the_policy_says_so(cloud: TalkingCloud) -> None:
    policy = Policy("allow", kinds={"API_KEY": "allow"})
    with client(cloud, policy) as ours:
        ours.respond(f"Why does {KEY} fail?", prefer="cloud")
    assert KEY.encode() in cloud.sent()


def test_the_key_of_a_cloud_is_in_no_message(cloud: TalkingCloud) -> None:
    key = "correct-horse-battery"
    model = fake_model(FakeEngine(b"I am not sure."))
    there = cloud.cloud()
    there = type(there)(there.base_url, there.model, key)
    with HybridClient(model, cloud=there, policy=Policy("allow"), confidence=UNSURE) as ours:
        assert ours.respond(f"Is {key} right?", prefer="cloud").route == "local"
        assert cloud.requests == []
        assert ours.respond("Is it right?", prefer="cloud").route == "cloud"
    assert last(json.loads(cloud.requests[0].partition(b"\r\n\r\n")[2])) == "Is it right?"
