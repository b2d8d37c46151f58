"""How the parts of an answer are written."""

from __future__ import annotations

from support.fake_engine import fake_model

from edgesdk.server.responses import ChatResponseBuilder, ResponseMetadata
from edgesdk.tools.calls import ToolCall


def test_arguments_are_json_in_the_client_s_own_letters() -> None:
    tokenizer = fake_model().runtime.encoder.tokenizer
    builder = ChatResponseBuilder(ResponseMetadata("m", None, tokenizer, may_call=True))
    first, second = builder.part_chunks(ToolCall("f", {"x": "é"}, id="call_1"), [])
    [opened] = first["choices"][0]["delta"]["tool_calls"]
    assert opened["id"] == "call_1"
    assert opened["function"] == {"name": "f", "arguments": ""}
    [arguments] = second["choices"][0]["delta"]["tool_calls"]
    assert arguments == {"index": 0, "function": {"arguments": '{"x": "é"}'}}
