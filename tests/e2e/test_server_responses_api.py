"""`/v1/responses` as OpenAI's own client sees it, and as Codex and the Agents SDK ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from support.fake_engine import FakeEngine
from support.script_engine import HERMES_TEMPLATE, ScriptEngine, call
from support.served import EchoEngine, FakeModels, Served, client_of, served

pytestmark = pytest.mark.e2e

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
SHELL: Any = {
    "type": "function",
    "name": "shell",
    "description": "Runs a command.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {"command": {"type": "array", "items": {"type": "string"}}},
        "required": ["command"],
        "additionalProperties": False,
    },
}
LIST = call("shell", command=["ls"])


@pytest.fixture(scope="module")
def script() -> ScriptEngine:
    return ScriptEngine((f"I look.\n{LIST}", "Two files."), context_length=8192)


@pytest.fixture(scope="module")
def server(script: ScriptEngine) -> Iterator[Served]:
    models = FakeModels(
        template=HERMES_TEMPLATE, hello=FakeEngine, echo=EchoEngine, script=lambda: script
    )
    with served(models, max_models=4) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


def test_a_response(client: openai.OpenAI) -> None:
    reply = client.responses.create(model="hello", input="Hi", instructions="Be brief.")
    assert reply.output_text == "Hello there."
    assert (reply.object, reply.status, reply.model) == ("response", "completed", "hello")
    [message] = reply.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert reply.usage is not None
    assert reply.usage.input_tokens == len("system: Be brief.\nuser: Hi\n") + 1
    assert reply.usage.output_tokens == len("Hello there.")
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    Response.model_validate(reply.model_dump(), strict=True)


def test_an_answer_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    reply = client.responses.create(model="hello", input="Hi", max_output_tokens=3)
    assert (reply.output_text, reply.status) == ("Hel", "incomplete")
    assert reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"


def events(server: Served, **body: Any) -> list[Any]:
    """The stream's events, each checked by its name, its number and OpenAI's own types."""
    reply = server.post("/v1/responses", json={"stream": True, **body})
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in reply.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = EVENT.validate_python(json.loads(data.removeprefix("data: ")), strict=True)
        assert name == f"event: {event.type}"
        assert event.sequence_number == len(found)
        found.append(event)
    return found


TEXT_EVENTS = [
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


def test_a_stream_has_all_events_in_order(server: Served) -> None:
    found = events(server, model="echo", input=f"Well.\n{LIST}", tools=[SHELL])
    kinds = list(dict.fromkeys((e.type, getattr(e, "output_index", None)) for e in found))
    called = ["response.function_call_arguments.delta", "response.function_call_arguments.done"]
    assert kinds == [
        ("response.created", None),
        ("response.in_progress", None),
        *((kind, 0) for kind in TEXT_EVENTS),
        ("response.output_item.added", 1),
        *((kind, 1) for kind in called),
        ("response.output_item.done", 1),
        ("response.completed", None),
    ]
    deltas = [event.delta for event in found if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "Well."
    [arguments] = [e.arguments for e in found if e.type == called[1]]
    assert json.loads(arguments) == {"command": ["ls"]}
    whole = found[-1].response
    done = [event.item for event in found if event.type == "response.output_item.done"]
    assert whole.output == done
    assert {e.item_id for e in found if hasattr(e, "item_id")} == {item.id for item in done}
    assert len({e.response.id for e in found if hasattr(e, "response")}) == 1
    # The response as a whole says the same.
    asked = {"model": "echo", "input": f"Well.\n{LIST}", "tools": [SHELL]}
    plain = Response.model_validate(server.post("/v1/responses", json=asked).json(), strict=True)
    assert [item.type for item in plain.output] == ["message", "function_call"]
    assert plain.output_text == "Well."


def test_the_clients_stream_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(model="echo", input="Grüße 🌍") as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == "Grüße 🌍"
    assert final.status == "completed"


class Place(BaseModel):
    city: str
    degrees: int


def test_a_structured_answer(client: openai.OpenAI) -> None:
    lima = '{"city":"Lima","degrees":21}'
    parsed = client.responses.parse(model="echo", input=lima, text_format=Place)
    assert parsed.output_parsed == Place(city="Lima", degrees=21)
    held = client.responses.parse(
        model="echo", input='{"city":"Lima","degrees":21} or so', text_format=Place
    )
    assert held.output_parsed == Place(city="Lima", degrees=21)
    json_object: Any = {"format": {"type": "json_object"}}
    free = client.responses.create(model="echo", input='{"a":1}', text=json_object)
    assert json.loads(free.output_text) == {"a": 1}


def test_what_codex_sends(client: openai.OpenAI, script: ScriptEngine) -> None:
    """Its twelve fields, tools that nobody here runs beside functions, and the second turn with
    the whole conversation, because it stores nothing."""
    items: list[Any] = [
        _message("developer", "<permissions instructions>"),
        _message("user", "<environment_context>"),
        _message("user", "What is here?"),
    ]
    asked: Any = {
        "model": "script",
        "instructions": "You are a coding agent.",
        "tools": [
            SHELL,
            {"type": "custom", "name": "apply_patch", "format": {"type": "text"}},
            {"type": "web_search", "external_web_access": False},
            {"type": "namespace", "name": "mcp", "description": "", "tools": []},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199-thread",
        "text": {"verbosity": "low"},
        "extra_body": {"client_metadata": {"x-codex-installation-id": "0"}},
    }

    def turn() -> Any:
        with client.responses.create(**asked, input=items, stream=True) as stream:
            found = list(stream)
        assert found[-1].type == "response.completed"
        return found[-1].response

    first = turn()
    assert [item.type for item in first.output] == ["message", "function_call"]
    assert [tool.type for tool in first.tools] == ["function", "custom"]
    made = first.output[1]
    # Codex sends the items back without their ids.
    items += [item.model_dump(exclude={"id", "status"}, exclude_none=True) for item in first.output]
    items.append({"type": "function_call_output", "call_id": made.call_id, "output": "a b"})
    second = turn()
    assert second.output_text == "Two files."
    before, after = script.prompts[-2:]
    assert "system: You are a coding agent.\n\n<permissions instructions>\n" in before
    assert "web_search" not in before
    assert after == f"{before}I look.\n{LIST}\x03shell gave a b\n\x02"
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens >= len(before.encode())
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)


def _message(role: str, text: str) -> Any:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


def test_a_custom_tool_takes_any_text(server: Served) -> None:
    patch = "*** Begin Patch\n+hi"
    tool = {"type": "custom", "name": "apply_patch"}
    asked = f"{call('apply_patch', input=patch)}"
    found = events(server, model="echo", input=asked, tools=[tool])
    [item] = found[-1].response.output
    assert (item.type, item.name, item.input) == ("custom_tool_call", "apply_patch", patch)
    kinds = {event.type for event in found}
    assert "response.custom_tool_call_input.done" in kinds
    again = server.post(
        "/v1/responses",
        json={
            "model": "echo",
            "input": [
                _message("user", "Patch."),
                item.model_dump(),
                {"type": "custom_tool_call_output", "call_id": item.call_id, "output": "Done."},
                _message("user", "Thanks"),
            ],
            "tools": [tool],
        },
    )
    assert Response.model_validate(again.json()).output_text == "Thanks"


def test_a_choice_of_tools(client: openai.OpenAI) -> None:
    now: Any = {"type": "function", "name": "now", "parameters": None, "strict": None}
    for choice in (
        "required",
        {"type": "function", "name": "shell"},
        {"type": "allowed_tools", "mode": "required", "tools": [{**SHELL}]},
    ):
        reply = client.responses.create(
            model="echo", input=LIST, tools=[SHELL, now], tool_choice=choice
        )
        assert [(item.type, item.name) for item in reply.output] == [("function_call", "shell")]
    none = client.responses.create(model="echo", input=LIST, tools=[SHELL], tool_choice="none")
    assert none.output_text == LIST


def test_the_previous_response_is_gone_on_with_and_not_computed_again(
    client: openai.OpenAI,
) -> None:
    """As the Agents SDK does: only what is new is sent."""
    first = client.responses.create(model="echo", input="My name is Ada.", instructions="Echo.")
    second = client.responses.create(
        model="echo", input="And then?", instructions="Echo.", previous_response_id=first.id
    )
    assert second.previous_response_id == first.id
    assert second.usage is not None
    whole = "system: Echo.\nuser: My name is Ada.\n\x02My name is Ada.\x03user: And then?\n\x02"
    assert second.usage.input_tokens == len(whole)
    assert second.usage.input_tokens_details.cached_tokens >= whole.index("\x03")
    assert client.responses.retrieve(second.id) == second
    listed = client.responses.input_items.list(second.id)
    assert len(listed.data) == 3
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    # What was forgotten is a part of the second one all the same.
    third = client.responses.create(model="echo", input="Bye", previous_response_id=second.id)
    assert third.output_text == "Bye"
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="echo", input="Hi", previous_response_id=first.id)
    assert caught.value.code == "previous_response_not_found"


def test_items_may_be_named_instead_of_sent(client: openai.OpenAI) -> None:
    """As the AI SDK does with what is stored."""
    first = client.responses.create(model="echo", input="One")
    reference: Any = {"type": "item_reference", "id": first.output[0].id}
    question: Any = {"role": "user", "content": "Two"}
    reply = client.responses.create(model="echo", input=[question, reference, question])
    assert reply.usage is not None
    assert reply.usage.input_tokens == len("user: Two\n\x02One\x03user: Two\n\x02")
    with pytest.raises(openai.BadRequestError, match="msg_0"):
        client.responses.create(model="echo", input=[{"type": "item_reference", "id": "msg_0"}])


def test_tokens_are_counted_without_an_answer(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="echo", input="Hi")
    assert counted.input_tokens == len("user: Hi\n") + 1


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "file_search"),
        ({"input": [{"type": "web_search_call", "id": "ws"}]}, "web_search_call"),
        ({"input": [{"role": "user", "content": [{"type": "video"}]}]}, "video"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"nonsense": 1}, "nonsense"),
        ({"include": ["message.output_text.logprobs"]}, "logprobs"),
        ({"input": "x" * 9000}, "4,095"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: openai.OpenAI, asked: Any, match: str
) -> None:
    body = {"model": "echo", "input": "Hi", **asked}
    with pytest.raises(openai.BadRequestError, match=match):
        client.post("/responses", body=body, cast_to=object)


def test_an_error_under_way_ends_the_stream_as_a_failed_response() -> None:
    def failing(sequence: Any) -> None:
        if len(sequence.tokens) > len("user: Hi\n") + 3:
            raise RuntimeError("The device is gone.")

    with served(FakeModels(broken=lambda: FakeEngine(before_extend=failing))) as running:
        found = events(running, model="broken", input="Hi")
    assert found[-1].type == "response.failed"
    assert found[-1].response.status == "failed"
    assert found[-1].response.error.code == "server_error"
