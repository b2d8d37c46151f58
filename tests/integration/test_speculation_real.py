"""Speculation on a real model, on both engines: never another answer than the plain loop's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgesdk.bundle.opening import Bundle
from edgesdk.generation.speculation import VerificationCosts
from edgesdk.loading import load
from edgesdk.model import Model
from edgesdk.reply import Reply

pytestmark = pytest.mark.integration

TEXT = (
    "The lighthouse at Cape Ann was built in 1771. It has two towers, and both are made of"
    " granite. The keeper climbs 156 steps every evening to light the lamp."
)
CODE = (
    "class Box:\n    def __init__(self, size):\n        self.size = size\n        self.items = []\n"
)
COPYING = (
    f"Repeat this text word for word:\n\n{TEXT}",
    f"Write this class again, with the name Chest instead of Box:\n\n{CODE}",
    f"Answer from this text only, with its first sentence. {TEXT} When was it built?",
    "Repeat five times: the quick brown fox jumps over the lazy dog.",
    "Write the numbers from one to ten as words, then write them all again.",
)
CHATTING = (
    "Name three rivers.",
    "Why is the sky blue?",
    "Write a line about the sea.",
    "What is a hash table good for?",
    "Give me a name for a cat.",
)
MOST = 40
# Rounding moves a logit of these quantized models by up to 1.3; a wrong token is further off.
ROUNDING = 2.0


@pytest.fixture(scope="module", params=["onnx", "gguf"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    source: Path
    if request.param == "onnx":
        bundle: Bundle = request.getfixturevalue("smollm2_int4")
        source = bundle.path
    else:
        source = request.getfixturevalue("smollm2_gguf")
    # One thread, so that llama.cpp does not split its attention, and drafting is really tried.
    with load(source, threads=1, context=1024) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def _cheap_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafting is tried whatever the clock says."""
    monkeypatch.setattr(VerificationCosts, "slope", 0.1)


@pytest.mark.parametrize("prompt", [*COPYING, *CHATTING])
def test_a_greedy_answer_is_that_of_the_plain_loop(model: Model, prompt: str) -> None:
    plain = model.respond(prompt, max_tokens=MOST, speculate="off")
    drafted = model.respond(prompt, max_tokens=MOST)

    assert drafted.tokens == plain.tokens
    assert drafted.text == plain.text
    assert plain.receipt.drafted_tokens == 0


def test_a_copying_answer_is_drafted_where_rows_agree(model: Model) -> None:
    reply = model.respond(COPYING[0], max_tokens=64)

    # Whether they do is up to the processor, for quantized matrices.
    assert reply.receipt.accepted_tokens > 0 or model.runtime.batched_verification.refuted


def test_a_seeded_answer_is_that_of_the_plain_loop(model: Model) -> None:
    def answer(speculate: str) -> Reply:
        return model.respond(
            COPYING[0],
            max_tokens=MOST,
            temperature=0.7,
            top_p=0.9,
            seed=7,
            speculate=speculate,  # type: ignore[typeddict-item]
        )

    assert answer("auto").tokens == answer("off").tokens


@pytest.mark.parametrize("prompt", COPYING[:2])
def test_lookup_accepts_only_what_the_model_would_say(model: Model, prompt: str) -> None:
    reply = model.respond(prompt, max_tokens=MOST, speculate="lookup")

    assert reply.receipt.accepted_tokens > 0
    runtime = model.runtime
    state = runtime.engine.new_state()
    row = state.extend(runtime.encoder.chat([{"role": "user", "content": prompt}]))[0]
    for token in reply.tokens:
        assert row[token] > np.max(row) - ROUNDING
        row = state.extend([token])[0]
    state.close()


def test_a_draft_model_on_the_other_engine_shares_the_vocabulary(
    smollm2_int4: Bundle, smollm2_gguf: Path
) -> None:
    with load(smollm2_gguf, threads=1, context=1024, draft=smollm2_int4.path) as model:
        plain = model.respond(COPYING[0], max_tokens=24, speculate="off")
        drafted = model.respond(COPYING[0], max_tokens=24)
        free = model.respond(COPYING[0], max_tokens=24, temperature=0.01)

    assert drafted.tokens == plain.tokens
    assert free.receipt.accepted_tokens > 0
