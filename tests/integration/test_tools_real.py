"""Tools with the chat templates of real models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import edgesdk
from edgesdk.errors import ToolRoundsExceeded
from edgesdk.model import Model

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def qwen(qwen_coder_gguf: Path) -> Iterator[Model]:
    with edgesdk.load(qwen_coder_gguf, context=1024, threads=1) as model:
        yield model


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


def test_a_model_without_tools_in_its_template_is_told_of_them(smollm2_gguf: Path) -> None:
    def shout(text: str) -> str:
        return text.upper()

    with edgesdk.load(smollm2_gguf, context=1024, threads=1) as model, model.chat() as chat:
        plain = model.count([{"role": "user", "content": "Hi."}])
        acted = chat.act("Hi.", [shout], max_tokens=8)

    assert acted.reply.receipt.prompt_tokens > plain + 50
