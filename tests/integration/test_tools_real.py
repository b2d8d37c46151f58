"""Tools with the chat templates, tokenizers and answers of real models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

import edgesdk
from edgesdk.errors import ToolRoundsExceeded
from edgesdk.model import Model
from edgesdk.tools.call_messages import call_message
from edgesdk.tools.call_table import HERMES, SMOLLM
from edgesdk.tools.calls import ToolCall

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def qwen(qwen_coder_gguf: Path) -> Iterator[Model]:
    with edgesdk.load(qwen_coder_gguf, context=1024, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Iterator[Model]:
    with edgesdk.load(smollm2_gguf, context=1024, threads=1) as model:
        yield model


def weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
    """Tell the weather of a city."""
    return f"21 degrees {unit}, clear sky"


def test_templates_of_real_models_tell_how_they_write_calls(qwen: Model, smollm2: Model) -> None:
    tool_format = qwen.runtime.tool_format
    assert (tool_format.tools, tool_format.calls, tool_format.results) == (True, 2, True)
    assert tool_format.syntax == HERMES
    calls = [ToolCall("weather", {"city": "Lima"}), ToolCall("weather", {"city": "Oslo"})]
    assert HERMES.write(calls) in _written(qwen, calls)

    other = smollm2.runtime.tool_format
    assert (other.tools, other.syntax) == (False, SMOLLM)
    assert SMOLLM.write(calls) in _written(smollm2, calls)


def _written(model: Model, calls: list[ToolCall]) -> str:
    encoder = model.runtime.encoder
    said = call_message("", calls)
    messages = model.runtime.tool_format.conversation([{"role": "user", "content": "?"}, said])
    assert encoder.template is not None
    return encoder.template.render(messages)


def test_qwen_goes_on_from_a_result_with_what_it_computed(qwen: Model) -> None:
    question = "What is the weather in Lima?"
    with qwen.chat() as chat:
        reply = chat.respond(question, tools=[weather], tool_choice="weather", max_tokens=60)
        assert reply.finish_reason == "tool_calls"
        [call] = reply.tool_calls
        assert (call.name, call.arguments["city"], call.problem) == ("weather", "Lima", None)
        assert reply.text == HERMES.write([call])
        chat.add_tool_result(call, weather(**call.arguments))
        answer = chat.respond(tools=[weather], max_tokens=1)

    step = qwen.runtime.engine.info.prefill_step
    held = reply.receipt.prompt_tokens
    assert held - step < answer.receipt.cached_tokens < answer.receipt.prompt_tokens


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_small_model_that_has_to_call_does_so_with_valid_arguments(
    smollm2: Model, temperature: float
) -> None:
    reply = smollm2.respond(
        "How warm is it in Oslo?",
        tools=[weather],
        tool_choice="weather",
        temperature=temperature,
        seed=3,
        max_tokens=400,
    )
    [call] = reply.tool_calls
    assert call.problem is None
    assert reply.text == SMOLLM.write([call])


def test_qwen_calls_a_tool_with_arguments_of_its_types(qwen: Model) -> None:
    cities: list[str] = []

    def weather(city: str) -> str:
        """Tell the weather of a city."""
        cities.append(city)
        return "21 degrees, clear sky"

    with qwen.chat() as chat:
        try:
            chat.act("What is the weather in Lima?", [weather], max_rounds=1, max_tokens=60)
        except ToolRoundsExceeded:
            # So small a model may ask again; what counts here is that its first call arrived.
            assert chat.messages == []

    assert cities == ["Lima"]


def test_a_model_without_tools_in_its_template_is_told_of_them(smollm2: Model) -> None:
    def shout(text: str) -> str:
        return text.upper()

    with smollm2.chat() as chat:
        plain = smollm2.count([{"role": "user", "content": "Hi."}])
        acted = chat.act("Hi.", [shout], max_tokens=8)

    assert acted.reply.receipt.prompt_tokens > plain + 50
