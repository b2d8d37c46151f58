"""A real model behind the public API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgesdk.errors import ContextOverflow, InvalidText
from edgesdk.loading import load
from edgesdk.model import Model

pytestmark = pytest.mark.integration
pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def model(smollm2_gguf: Path) -> Iterator[Model]:
    with load(smollm2_gguf, context=1024, threads=1) as loaded:
        yield loaded


# Longer than the groups in which prompts are computed.
TERSE = "You are terse, and you answer what you are asked. " * 8


def test_the_second_turn_reuses_nearly_all_of_the_first_prompt(model: Model) -> None:
    with model.chat(system=TERSE) as chat:
        first = chat.respond("Hello, who are you?", max_tokens=48).receipt
        second = chat.respond("What is the capital of France?", max_tokens=16)

    assert first.cached_tokens == 0
    assert second.receipt.cached_tokens > first.prompt_tokens - 64 > 0
    assert "Paris" in second.text


def test_a_chat_with_its_cache_says_what_it_says_without(model: Model) -> None:
    with model.chat(system=TERSE) as chat:
        chat.respond("Name a colour.", max_tokens=16)
        cached = chat.respond("Name another one.", max_tokens=24)
        messages = chat.messages[:-1]
    fresh = model.respond(messages, max_tokens=24)

    assert cached.receipt.cached_tokens > 0
    assert fresh.receipt.cached_tokens == 0
    assert cached.text == fresh.text


def test_the_same_seed_gives_the_same_text(model: Model) -> None:
    def ask(seed: int) -> str:
        return model.respond(
            "Tell me a story.", temperature=1.2, top_p=0.95, seed=seed, max_tokens=24
        ).text

    assert ask(3) == ask(3)
    assert ask(3) != ask(4)


def test_a_stop_text_of_a_real_answer_ends_it(model: Model) -> None:
    whole = model.respond("Count from one to five.", max_tokens=32).text
    middle = whole[len(whole) // 2 :][:6]

    cut = model.respond("Count from one to five.", max_tokens=32, stop=middle)

    assert cut.finish_reason == "stop"
    assert cut.text == whole[: whole.index(middle)]


def test_a_prompt_past_the_context_is_refused_with_its_numbers(model: Model) -> None:
    with pytest.raises(ContextOverflow, match="1,023 fit") as caught:
        model.respond("word " * 2000)

    assert caught.value.tokens > 2000


def test_a_lone_surrogate_is_refused(model: Model) -> None:
    with pytest.raises(InvalidText, match="position"):
        model.respond("abc\udc80")


def test_a_completion_goes_on_with_the_text(model: Model) -> None:
    reply = model.complete("The capital of France is", max_tokens=4)

    assert reply.text.startswith(" ")
    assert reply.receipt.prompt_tokens == model.count("The capital of France is")
