"""A cached answer is a fresh answer, number for number, in every way of reuse."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import edgesdk
from edgesdk.model import Model

pytestmark = pytest.mark.integration

QUESTIONS = (
    "What is the capital of France?",
    "Name three rivers of Europe, one a line, and say of each into which sea it flows in the end.",
    "Why is the sky blue? Answer for a child of six years who has just learned what light is, and"
    " mention the colours of a rainbow, the evening sky, and what an astronaut sees up there.",
)
# A history of its own length for each, so that prompts end everywhere in a slice.
TOKENS = 12


@pytest.fixture(scope="module", params=["int8", "int4", "gguf"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    if request.param == "gguf":
        pytest.importorskip("llama_cpp")
        source = request.getfixturevalue("smollm2_gguf")
    else:
        source = request.getfixturevalue(f"smollm2_{request.param}").path
    with edgesdk.load(source, threads=2, context=1024) as model:
        yield model


def ask(asked: Callable[..., edgesdk.Reply], question: str) -> tuple[int, ...]:
    return asked(question, temperature=0, max_tokens=TOKENS, speculate="off").tokens


@pytest.fixture(scope="module")
def fresh(model: Model) -> dict[str, tuple[int, ...]]:
    return {question: ask(model.respond, question) for question in QUESTIONS}


def test_asked_again_after_a_reset(model: Model, fresh: dict[str, tuple[int, ...]]) -> None:
    with model.chat() as chat:
        for question in QUESTIONS * 2:
            chat.reset()
            assert ask(chat.respond, question) == fresh[question]


def test_a_second_turn_is_that_of_a_new_chat_with_its_history(model: Model, tmp_path: Path) -> None:
    for question in QUESTIONS:
        with model.chat() as chat:
            ask(chat.respond, question)
            place = tmp_path / "saved"
            chat.save(place)
            history = [*chat.messages, {"role": "user", "content": "Say more."}]
            wanted = model.respond(
                history, temperature=0, max_tokens=TOKENS, speculate="off"
            ).tokens
            with chat.fork() as twin:
                assert ask(twin.respond, "Say more.") == wanted
            with model.restore(place) as restored:
                assert ask(restored.respond, "Say more.") == wanted
            assert ask(chat.respond, "Say more.") == wanted


def test_answers_at_once_are_those_of_one_after_the_other(
    model: Model, fresh: dict[str, tuple[int, ...]]
) -> None:
    found: dict[str, tuple[int, ...]] = {}

    def one(question: str) -> None:
        found[question] = ask(model.respond, question)

    threads = [threading.Thread(target=one, args=(question,)) for question in QUESTIONS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == fresh


def test_speculated(model: Model, fresh: dict[str, tuple[int, ...]]) -> None:
    for question in QUESTIONS:
        reply = model.respond(question, temperature=0, max_tokens=TOKENS)
        assert reply.tokens == fresh[question]


def test_logits_do_not_depend_on_what_else_the_cache_holds(model: Model) -> None:
    engine = model.runtime.engine
    step = engine.info.prefill_step
    ids = list(range(100, 180))
    state = engine.new_state()
    wanted = state.extend(ids).copy()
    other = engine.new_state()
    other.extend(list(range(300, 377)))
    for cut in range(step, len(ids) - 1, step * 16 if step == 1 else step):
        state.rewind(cut)
        assert np.array_equal(state.extend(ids[cut:]), wanted)
        new = engine.new_state()
        assert np.array_equal(new.extend(ids), wanted)
        fork = new.fork()
        fork.rewind(cut)
        assert np.array_equal(fork.extend(ids[cut:]), wanted)
        new.close()
        fork.close()
    other.close()
    state.close()
