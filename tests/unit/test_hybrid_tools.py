"""Tools, forms and reasoning, whoever answers; and what of them is sent."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from support.fake_engine import FakeDecodeState, FakeEngine, fake_model
from support.scripted_server import Reset
from support.served import TOOL_TEMPLATE
from support.talking_cloud import Answers, TalkingCloud, called, last, said

from edgesdk.errors import ContextOverflow, IncompleteStructure
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.cloud_reply import Restart, TextDelta
from edgesdk.hybrid.cloud.spending import Budget, SpendingLimits
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.privacy.builtin_detectors import BUILTIN_DETECTORS
from edgesdk.hybrid.privacy.detectors import Terms
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.reply import ReasoningDelta

# The fake engine's tokens have a probability of 0.39, and its answers that of all their tokens.
SURE, UNSURE = Confidence(threshold=0.0, abort_below=0.0), Confidence(threshold=0.5)
PLACEHOLDER = re.compile(r"<[A-Z_]+_[0-9]+>")


def send(to: str, text: str = "", times: int = 1) -> str:
    """Send a mail."""
    return f"sent {text!r} to {to} {times} times"


def local_call(name: str = "send", **arguments: Any) -> bytes:
    call = {"name": name, "arguments": arguments}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>".encode()


def client_with(
    server: TalkingCloud, answer: bytes = b"I do not know.", **changes: Any
) -> HybridClient:
    model = fake_model(FakeEngine(answer), template=TOOL_TEMPLATE)
    settings: dict[str, Any] = {"cloud": server.cloud(), "confidence": UNSURE, **changes}
    return HybridClient(model, **settings)


def never(body: dict[str, Any]) -> Any:
    raise AssertionError("the cloud was asked")


def test_a_call_of_the_device_stays_here() -> None:
    with (
        TalkingCloud(never) as cloud,
        client_with(cloud, local_call(to="bob"), confidence=SURE) as client,
    ):
        reply = client.respond("Mail Bob", tools=[send])
    (call,) = reply.tool_calls
    assert (call.name, call.arguments, call.problem) == ("send", {"to": "bob"}, None)
    assert (reply.route, reply.finish_reason) == ("local", "tool_calls")
    assert reply.message["tool_calls"][0]["function"]["arguments"] == {"to": "bob"}
    assert cloud.requests == []


@pytest.mark.parametrize("prefer", [None, "cloud"])
def test_the_budget_reserves_a_prompt_with_its_tools_once(
    prefer: Literal["cloud"] | None,
) -> None:
    tool = {
        "type": "function",
        "function": {"name": "send", "description": "x" * 600, "parameters": {"type": "object"}},
    }
    plain = Budget(SpendingLimits())
    with TalkingCloud(lambda body: [Reset()]) as cloud, client_with(cloud, budget=plain) as client:
        prompt = client.respond("Mail Bob", tools=[tool], max_tokens=20, prefer="local").receipt
        client.respond("Mail Bob", tools=[tool], max_tokens=20, prefer=prefer)
        attempts = len(cloud.requests)
    assert prompt.prompt_tokens is not None
    assert prompt.prompt_tokens > 600
    # Half as much again, because tokenizers differ.
    assert plain.spent().tokens == attempts * (int(1.5 * prompt.prompt_tokens) + 20)


def test_tools_that_do_not_fit_the_device_are_the_clouds() -> None:
    """The prompt fits by itself; with the specs of its tools it does not."""
    tool = {
        "type": "function",
        "function": {"name": "send", "description": "x" * 3_000, "parameters": {"type": "object"}},
    }
    engine = FakeEngine(b"ok", context_length=2_000)
    with (
        TalkingCloud(lambda body: called(("send", {}))) as cloud,
        HybridClient(
            fake_model(engine, template=TOOL_TEMPLATE), cloud=cloud.cloud(), confidence=SURE
        ) as client,
    ):
        reply = client.respond("Mail Ann", tools=[tool])
        assert client.respond("Mail Ann").route == "local"
        with pytest.raises(ContextOverflow):
            client.respond("Mail Ann", tools=[tool], upload="local_only")
    assert (reply.route, reply.rejected_by) == ("cloud", "context")
    assert [call.name for call in reply.tool_calls] == ["send"]


def test_calls_come_from_one_side_only() -> None:
    """The device's draft calls a tool too; nothing of it is in the cloud's answer."""
    with (
        TalkingCloud(lambda body: called(("send", {"to": "ann"}), words="At once. ")) as cloud,
        client_with(cloud, local_call(to="bob")) as client,
    ):
        stream = client.stream("Mail Ann", tools=[send])
        events = list(stream)
    reply = stream.reply
    assert [call.arguments for call in reply.tool_calls] == [{"to": "ann"}]
    assert (reply.route, reply.finish_reason, reply.text) == ("cloud", "tool_calls", "At once. ")
    assert reply.message["tool_calls"][0]["id"] == "call_send_0"
    places = [place for place, event in enumerate(events) if isinstance(event, Restart)]
    assert len(places) == 1
    assert {event.route for event in events[: places[0]] if isinstance(event, TextDelta)} == {
        "local"
    }
    assert {event.route for event in events[places[0] + 1 :] if isinstance(event, TextDelta)} == {
        "cloud"
    }


@pytest.mark.parametrize("fields", [{"to": 5}, {"to": "ann", "what": 1}, {}])
def test_a_call_of_the_device_that_does_not_fit_is_left_to_the_cloud(fields: Any) -> None:
    # Without the grammar, which holds the device to what fits.
    with (
        TalkingCloud(lambda body: called(("send", {"to": "ann"}))) as cloud,
        client_with(cloud, local_call(**fields), confidence=SURE) as client,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("edgesdk.runtime.Runtime.constraint_for", lambda self, output_format: None)
        reply = client.respond("Mail Ann", tools=[send])
        kept = client.respond("Mail Ann", tools=[send], upload="local_only")
    assert (reply.route, reply.tool_calls[0].arguments) == ("cloud", {"to": "ann"})
    assert "does not fit the tools" in reply.reason
    assert (kept.route, kept.low_confidence) == ("local", True)
    assert kept.tool_calls[0].problem


@pytest.mark.parametrize(
    "answer",
    [
        called(("send", {"to": 5})),
        called(("send", {"to": "ann", "other": 1})),
        called(("delete", {})),
        called(("send", {"to": "ann"}), ("delete", {}), words="Both: "),
    ],
)
def test_a_call_of_the_cloud_that_does_not_fit_is_none(answer: Any) -> None:
    budget = Budget(SpendingLimits(money_per_day=1))
    with TalkingCloud(lambda body: answer) as cloud:
        there = cloud.cloud(input_price=1000.0, output_price=0.0)
        with client_with(cloud, cloud=there, budget=budget) as client:
            stream = client.stream("Mail Ann", tools=[send])
            shown = ""
            for event in stream:
                shown = "" if isinstance(event, Restart) else shown + event.text
    reply = stream.reply
    assert (reply.route, reply.low_confidence, reply.tool_calls) == ("local", True, ())
    assert shown == reply.text == "I do not know."
    assert "the cloud's call does not fit the tools" in reply.reason
    # It was paid for.
    assert reply.cost.money == budget.spent().money == pytest.approx(0.003)


def test_arguments_come_back_with_their_values() -> None:
    terms = Terms(['Ann "the cat"\nLee', "Müller\\Sohn"])
    policy = Policy("redact", detectors=[*BUILTIN_DETECTORS, terms])

    def answers(body: dict[str, Any]) -> Any:
        # As models do: one mangled, one inside other words.
        mail, name, firm = PLACEHOLDER.findall(last(body))
        return called(("send", {"to": mail.lower(), "text": f"Dear {name} of {firm[1:-1]}!"}))

    with TalkingCloud(answers) as cloud, client_with(cloud, policy=policy) as client:
        reply = client.respond('Mail ann@x.io, Ann "the cat"\nLee of Müller\\Sohn.', tools=[send])
    (call,) = reply.tool_calls
    assert call.arguments == {
        "to": "ann@x.io",
        "text": 'Dear Ann "the cat"\nLee of Müller\\Sohn!',
    }
    assert b"ann@x.io" not in cloud.sent()
    assert b"the cat" not in cloud.sent()


SECRETS = [
    "ann.lee@mail.example", "+86 138 0013 8000", "(415) 555-2671", "4111 1111 1111 1111",
    "DE89 3704 0044 0532 0130 00", "192.168.10.254", "postgres://admin:s3cret@db.internal/app",
    "sk-proj-abcdefghijklmnop1234", "536-90-4399", "11010519491231002X", "13800138000",
]  # fmt: skip


def test_secrets_leave_in_no_part_of_a_request() -> None:
    """In each place that a request has for a text, a key or a number."""
    spec = {
        "type": "function",
        "function": {
            "name": "look_up_acme",
            "description": f"Ask {SECRETS[0]} first.",
            "parameters": {
                "type": "object",
                "properties": {
                    SECRETS[1]: {"type": "string", "default": SECRETS[2]},
                    "of": {"enum": [SECRETS[3], {"nested": [SECRETS[4]]}]},
                },
            },
        },
    }
    arguments = {
        "role": SECRETS[5],
        "type": SECRETS[6],
        "id": [{"deep": SECRETS[7]}],
        SECRETS[8]: True,
        "card": 4111111111111111,
        "escaped": SECRETS[0],
    }
    call = {
        "id": SECRETS[9],
        "type": "function",
        # Escaped, as some clients write it.
        "function": {
            "name": "look_up_acme",
            "arguments": json.dumps(arguments).replace("@", "\\u0040"),
        },
    }
    messages = [
        {"role": "system", "content": [{"type": "text", "text": f"For {SECRETS[10]}."}]},
        {"role": "user", "name": SECRETS[0], "content": "Look Acme up."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": SECRETS[9], "name": "x", "content": f"is {SECRETS[1]}"},
    ]
    policy = Policy("redact", detectors=[*BUILTIN_DETECTORS, Terms(["Acme", "look_up_acme"])])

    def answers(body: dict[str, Any]) -> Any:
        alias = body["tools"][0]["function"]["name"]
        key = next(iter(body["tools"][0]["function"]["parameters"]["properties"]))
        return called((alias, {key: "found"}))

    with TalkingCloud(answers) as cloud, client_with(cloud, policy=policy) as client:
        reply = client.respond(
            messages, prefer="cloud", tools=[spec], tool_choice="look_up_acme", stop=SECRETS[0]
        )
        (body,) = cloud.bodies()
    sent = cloud.sent()
    for secret in [*SECRETS, "4111111111111111", "cme"]:
        assert secret.encode() not in sent, secret
        assert json.dumps(secret)[1:-1].encode() not in sent, secret
    (call_back,) = reply.tool_calls
    assert (call_back.name, call_back.arguments) == ("look_up_acme", {SECRETS[1]: "found"})
    # What belongs together still does.
    made, told = body["messages"][2]["tool_calls"][0], body["messages"][3]
    assert made["id"] == told["tool_call_id"]
    assert made["function"]["name"] == body["tools"][0]["function"]["name"]
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", made["function"]["name"])
    assert body["tool_choice"]["function"]["name"] == made["function"]["name"]


def test_a_policy_sees_what_tools_say() -> None:
    spec = {"type": "function", "function": {"name": "f", "description": "As root@host.example."}}
    policy = Policy("allow", kinds={"EMAIL": "local_only"})
    with TalkingCloud(never) as cloud, client_with(cloud, policy=policy) as client:
        assert client.respond("Go", tools=[spec]).route == "local"
        numbers = {"id": "a", "function": {"name": "f", "arguments": {"n": 4111111111111111}}}
        strict = Policy("allow", kinds={"CARD": "local_only"})
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [numbers]}]
    assert strict.evaluate(messages).upload == "local_only"
    assert cloud.requests == []


def test_a_tool_must_be_called() -> None:
    with (
        TalkingCloud(lambda body: said("I would rather not.")) as cloud,
        client_with(cloud, local_call(to="bob")) as client,
    ):
        reply = client.respond("Mail Bob", tools=[send], tool_choice="required")
        (body,) = cloud.bodies()
    assert body["tool_choice"] == "required"
    assert (reply.route, reply.low_confidence) == ("local", True)
    assert "called no tool" in reply.reason
    assert reply.tool_calls[0].arguments == {"to": "bob"}


class City(BaseModel):
    """A place."""

    name: str
    state: Literal["open", "closed"]


ASKED = {
    "pydantic": City,
    "schema": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "state": {"enum": ["open", "closed"]}},
        "required": ["name", "state"],
    },
}


@pytest.mark.parametrize("kind", ASKED)
def test_a_form_holds_for_both(kind: str) -> None:
    name = 'Rome "the old"\n'

    def answers(body: dict[str, Any]) -> Any:
        (hidden,) = PLACEHOLDER.findall(last(body))
        text = json.dumps({"name": hidden, "state": "open"}, indent=1)
        return said(*(text[at : at + 5] for at in range(0, len(text), 5)))

    policy = Policy("redact", detectors=[Terms([name.strip()])])
    local = b'{"name":"Oslo","state":"closed"}'
    with TalkingCloud(answers) as cloud, client_with(cloud, local, policy=policy) as client:
        stream = client.stream(f"Where is {name}?", schema=ASKED[kind])
        shown = ""
        for event in stream:
            shown = "" if isinstance(event, Restart) else shown + event.text
        here = client.respond(f"Where is {name}?", schema=ASKED[kind], prefer="local")
        (body,) = cloud.bodies()
    expected = {"name": name.strip(), "state": "open"}
    reply = stream.reply
    assert reply.route == "cloud"
    assert json.loads(shown) == json.loads(reply.text) == expected
    assert reply.parsed == (City(**expected) if kind == "pydantic" else expected)
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["name", "state"]
    assert here.parsed == (
        City(name="Oslo", state="closed")
        if kind == "pydantic"
        else {"name": "Oslo", "state": "closed"}
    )


@pytest.mark.parametrize("text", ["Rome.", '{"name": "Rome"}', '{"name": 1, "state": "open"}', "{"])
def test_a_cloud_answer_without_the_form_is_none(text: str) -> None:
    local = b'{"name":"Oslo","state":"open"}'
    with TalkingCloud(lambda body: said(text)) as cloud, client_with(cloud, local) as client:
        reply = client.respond("Where?", schema=City)
    assert (reply.route, reply.parsed) == ("local", City(name="Oslo", state="open"))
    assert "does not fit the output format" in reply.reason


def test_a_draft_that_was_cut_is_not_kept_and_two_of_them_are_an_error() -> None:
    answers: Answers = lambda body: said('{"name":"Rome","state":"open"}')  # noqa: E731
    local = b'{"name":"' + b"x" * 90
    with (
        TalkingCloud(answers) as cloud,
        client_with(cloud, local, confidence=SURE) as client,
    ):
        reply = client.respond("Where?", schema=City, max_tokens=30)
        assert (reply.route, reply.parsed) == ("cloud", City(name="Rome", state="open"))
        assert "does not fit the output format" in reply.reason
        with pytest.raises(IncompleteStructure):
            client.respond("Where?", schema=City, max_tokens=30, upload="local_only")


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_half_a_value_is_none_even_where_it_fits(finish: str) -> None:
    # "12" may be the half of "123".
    schema = {"type": "integer"}
    with (
        TalkingCloud(lambda body: said("12", finish=finish)) as cloud,
        client_with(cloud, b"7") as client,
    ):
        reply = client.respond("How many?", schema=schema)
    assert (reply.route, reply.parsed, reply.low_confidence) == ("local", 7, True)
    assert "; the cloud's answer was" in reply.reason


def test_half_a_call_runs_nothing() -> None:
    cut = called(("send", {"to": "ann"}), finish="length")
    with TalkingCloud(lambda body: cut) as cloud, client_with(cloud) as client:
        reply = client.respond("Mail Ann", tools=[send])
    assert (reply.route, reply.tool_calls, reply.low_confidence) == ("local", (), True)
    assert reply.reason.endswith("; the cloud's answer was cut at its token limit")


def test_a_form_that_no_cloud_knows_stays_here() -> None:
    with TalkingCloud(never) as cloud, client_with(cloud, b"yes") as client:
        reply = client.respond("Is it?", choices=["yes", "no"])
    assert (reply.route, reply.parsed, cloud.requests) == ("local", "yes", [])
    assert "cannot be held to this output format" in reply.reason


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_what_is_thought_is_no_part_of_the_answer(field: str) -> None:
    def answers(body: dict[str, Any]) -> Any:
        return said(
            "Mail ", last(body).split()[-1], **{field: f"So {last(body).split()[-1]} it is"}
        )

    with TalkingCloud(answers) as cloud, client_with(cloud) as client:
        stream = client.stream("To ann@x.io", prefer="cloud")
        events = list(stream)
    assert "".join(e.text for e in events if isinstance(e, ReasoningDelta)) == "So ann@x.io it is"
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "Mail ann@x.io"
    assert stream.reply.text == "Mail ann@x.io"
    assert stream.reply.reasoning == "So ann@x.io it is"
    assert "So" not in stream.reply.message["content"]


def test_a_detector_that_fails_on_the_way_out_blocks_the_upload() -> None:
    class Moody:
        """Works until the device has begun to answer."""

        broken = False

        def find(self, text: str) -> Any:
            if self.broken:
                raise OSError(f"cannot read {text}")
            return []

        def breaks(self, sequence: FakeDecodeState) -> None:
            self.broken = True

    moody = Moody()
    model = fake_model(FakeEngine(b"No.", before_extend=moody.breaks))
    policy = Policy("redact", detectors=[moody])
    with (
        TalkingCloud(never) as cloud,
        HybridClient(model, cloud=cloud.cloud(), policy=policy, confidence=UNSURE) as client,
    ):
        reply = client.respond("Mail ann@x.io")
    assert (reply.route, reply.low_confidence, cloud.requests) == ("local", True, [])
    assert "policy: hiding failed with OSError" in reply.reason
    assert "ann" not in reply.reason
