"""What Claude Code and Codex send, over their vendors' clients, answered by a real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from openai.types.responses import Response
from support.served import Served, client_of, served

from edgesdk.server.model_pool import StoreModels

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]

PARAMETERS: Any = {
    "type": "object",
    "properties": {"command": {"type": "string", "description": "What to run."}},
    "required": ["command"],
}
QUESTION = "List the files of this folder with the shell command ls."
LISTED = "notes.txt\nsetup.py"
# llama.cpp's engine computes again what is beyond a block of so many tokens.
BLOCK = 64
# A model so small calls again where nobody asks it to speak.
FOLLOWING = "Thank you. Now say in one sentence which files there are."


@pytest.fixture(scope="module")
def server(qwen_coder_gguf: Path) -> Iterator[Served]:
    with served(StoreModels([str(qwen_coder_gguf)], context=4096)) as running:
        yield running


def test_claude_codes_two_turns(server: Served) -> None:
    client = anthropic.Anthropic(base_url=server.url, api_key="unused", timeout=300)
    mark = {"cache_control": {"type": "ephemeral"}}
    tools = [{"name": "Bash", "description": "Runs a command.", "input_schema": PARAMETERS, **mark}]
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": QUESTION, **mark}]}
    ]

    def turn(nonce: int, **more: Any) -> Any:
        system = [
            {"type": "text", "text": f"x-anthropic-billing-header: cch={nonce};"},
            {"type": "text", "text": "You are a coding agent. Be brief.", **mark},
        ]
        with client.beta.messages.stream(
            model="",
            max_tokens=200,
            system=system,
            messages=messages,
            tools=tools,
            metadata={"user_id": "u"},
            betas=["claude-code-20250219"],
            extra_body={"temperature": 0},
            **more,
        ) as stream:
            return stream.get_final_message()

    first = turn(1, tool_choice={"type": "any", "disable_parallel_tool_use": True})
    [used] = first.content
    assert (first.stop_reason, used.type, used.name) == ("tool_use", "tool_use", "Bash")
    assert used.input["command"].startswith("ls")
    messages += [{"role": "assistant", "content": first.content}]
    result = {"type": "tool_result", "tool_use_id": used.id, "content": LISTED}
    more = {"type": "text", "text": FOLLOWING}
    messages += [{"role": "user", "content": [result, more]}]
    second = turn(2)
    said = "".join(block.text for block in second.content if block.type == "text")
    assert second.stop_reason == "end_turn"
    assert "notes.txt" in said
    before = first.usage.input_tokens + first.usage.cache_read_input_tokens
    assert second.usage.cache_read_input_tokens > before - BLOCK


def test_codexs_two_turns(server: Served) -> None:
    client = client_of(server).with_options(timeout=300)
    items: list[Any] = [
        {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}
        for role, text in (("developer", "The sandbox is read-only."), ("user", QUESTION))
    ]
    shell: Any = {
        "type": "function",
        "name": "shell",
        "description": "Runs a command.",
        "strict": False,
        "parameters": PARAMETERS,
    }

    def turn(choice: Any) -> Response:
        stream = client.responses.create(
            model="",
            instructions="You are a coding agent. Be brief.",
            input=items,
            tools=[shell, {"type": "web_search"}],
            tool_choice=choice,
            parallel_tool_calls=False,
            reasoning={"effort": "medium", "summary": "auto"},
            store=False,
            stream=True,
            include=["reasoning.encrypted_content"],
            prompt_cache_key="thread",
            temperature=0,
            extra_body={"client_metadata": {"x": "y"}},
        )
        *_, last = stream
        assert last.type == "response.completed"
        return last.response

    first = turn("required")
    [made] = first.output
    assert made.type == "function_call"
    assert made.name == "shell"
    assert "ls" in made.arguments
    items.append(made.model_dump(exclude={"id", "status"}, exclude_none=True))
    items.append({"type": "function_call_output", "call_id": made.call_id, "output": LISTED})
    said = [{"type": "input_text", "text": FOLLOWING}]
    items.append({"type": "message", "role": "user", "content": said})
    second = turn("auto")
    assert "notes.txt" in second.output_text
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens > first.usage.input_tokens - BLOCK
