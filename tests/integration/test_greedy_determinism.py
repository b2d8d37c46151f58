"""A cached answer is a fresh answer, number for number, in every way of reuse."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.recipes.recipe import Recipe
from edgesdk_export.recipes.sections import OnnxRecipe
from support.tiny_models import make_tiny

import edgesdk
from edgesdk.engines.base import DecodeState, Engine, Logits
from edgesdk.engines.registry import open_engine
from edgesdk.generation.prefill import prefill, reusable_prefix
from edgesdk.generation.prefix_cache import PrefixCache
from edgesdk.model import Model
from edgesdk.server.state_pool import StatePool

pytestmark = pytest.mark.integration

QUESTIONS = (
    "What is the capital of France?",
    "Name three rivers of Europe, one a line, and say of each into which sea it flows in the end.",
    "Why is the sky blue? Answer for a child of six years who has just learned what light is, and"
    " mention the colours of a rainbow, the evening sky, and what an astronaut sees up there.",
)
# A history of its own length for each, so that prompts end everywhere in a slice.
TOKENS = 12


@pytest.fixture(
    scope="module", params=["int8", pytest.param("int4", marks=pytest.mark.nightly), "gguf"]
)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    if request.param == "gguf":
        pytest.importorskip("llama_cpp")
        # Threads of llama.cpp wait for one another without sleeping, which is slow where a worker
        # of the tests has one processor. The tiny model below has two of them.
        source, threads = request.getfixturevalue("smollm2_gguf"), 1
    else:
        source, threads = request.getfixturevalue(f"smollm2_{request.param}").path, 2
    with edgesdk.load(source, threads=threads, context=1024) as model:
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


def computed(model: Model, state: DecodeState, messages: list[dict[str, str]]) -> list[Logits]:
    """The logits of each step of an answer that is made on `state`."""
    rows: list[Logits] = []
    request = model.runtime.request(
        messages, {"temperature": 0, "max_tokens": TOKENS, "speculate": "off"}
    )
    list(model.runtime.generate(state, request, on_step=lambda row, *_: rows.append(row.copy())))
    return rows


def fresh_logits(model: Model, messages: list[dict[str, str]]) -> list[Logits]:
    state = model.runtime.engine.new_state()
    try:
        return computed(model, state, messages)
    finally:
        state.close()


def same(found: list[Logits], wanted: list[Logits]) -> bool:
    return len(found) == len(wanted) and all(map(np.array_equal, found, wanted))


def test_a_beginning_from_the_disk(model: Model, tmp_path: Path) -> None:
    cache = PrefixCache(tmp_path, min_tokens=64)
    caching = Model("caching", replace(model.runtime, prefix_cache=cache), model.source)
    system = {"role": "system", "content": " ".join(QUESTIONS)}
    stored = caching.cache_prefix([system])
    for question in QUESTIONS[:2]:
        messages = [system, {"role": "user", "content": question}]
        reply = caching.respond(messages, temperature=0, max_tokens=1)
        assert stored - 64 <= reply.receipt.cached_tokens <= stored
        assert same(fresh_logits(caching, messages), fresh_logits(model, messages))


def test_the_states_of_a_server(model: Model) -> None:
    states = StatePool(2)
    system = {"role": "system", "content": " ".join(QUESTIONS)}

    def served(messages: list[dict[str, str]]) -> list[Logits]:
        prompt = model.runtime.encode(messages)
        state = states.take(model.runtime.engine, prompt)
        reused.append(reusable_prefix(state, prompt, model.runtime.engine.info.prefill_step))
        rows = computed(model, state, messages)
        states.release(model.runtime.engine, state)
        return rows

    reused: list[int] = []
    try:
        for question in QUESTIONS[:2]:
            asked = [system, {"role": "user", "content": question}]
            answered = [*asked, {"role": "assistant", "content": "It is. " * 20}]
            for messages in (asked, [*answered, {"role": "user", "content": "Why?"}], asked):
                assert same(served(messages), fresh_logits(model, messages))
    finally:
        states.close()
    assert min(reused[1:]) > 0


@pytest.fixture(scope="module", params=["int8", "int4", "gguf of two threads"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Engine]:
    if request.param in ("int8", "int4"):
        source = request.getfixturevalue(f"smollm2_{request.param}")
    else:
        pytest.importorskip("llama_cpp")
        from support.tiny_ggufs import write_tiny_gguf

        folder = tmp_path_factory.mktemp("gguf")
        model = make_tiny("llama", folder / "checkpoint", max_position_embeddings=1024)
        source = folder / "tiny.gguf"
        write_tiny_gguf(model, source)
    opened = open_engine(source, threads=2, context=1024)
    yield opened
    opened.close()


def test_logits_do_not_depend_on_what_else_the_cache_holds(engine: Engine) -> None:
    step = engine.info.prefill_step
    # Past the first 256 positions llama.cpp splits the attention of a step among threads.
    ids = [number % engine.info.vocab_size for number in range(100, 400)]
    state = engine.new_state()
    wanted, wanted_step = state.extend(ids).copy(), state.extend([7]).copy()
    other = engine.new_state()
    other.extend(ids[200:277])
    for cut in (70 // step * step, 298 // step * step):
        state.rewind(cut)
        assert np.array_equal(state.extend(ids[cut:]), wanted)
        new = engine.new_state()
        assert np.array_equal(new.extend(ids), wanted)
        fork = new.fork()
        fork.rewind(cut)
        other.extend([9])
        assert np.array_equal(fork.extend(ids[cut:]), wanted)
        for each in (state, new, fork):
            assert np.array_equal(each.extend([7]), wanted_step)
        new.close()
        fork.close()
    other.close()
    state.close()


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("tiny") / "checkpoint"
    sizes = {"hidden_size": 256, "intermediate_size": 384, "max_position_embeddings": 512}
    make_tiny("llama", folder, **sizes)
    return folder


@pytest.mark.parametrize("bits", ["fp32", "fp16", (4, 64), (4, 128), (8, 64), (8, 128)])
def test_every_number_format(bits: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Onnxruntime has kernels for an odd last row of long blocks, and its attention takes 128 rows
    at a time here, of which a single one in the end would be computed as a step is."""
    if isinstance(bits, str):
        job = ExportJob(tiny_checkpoint, tmp_path / "b", "tiny", scheme=bits, quality_tokens=0)
    else:
        recipe = Recipe(name="blocks", onnx=OnnxRecipe(bits=bits[0], block=bits[1]))
        job = ExportJob(tiny_checkpoint, tmp_path / "b", "tiny", recipe=recipe, quality_tokens=0)
    engine = open_engine(export(job, SilentProgress()), threads=2)
    ids = np.random.default_rng(0).integers(0, 256, 200).tolist()
    for count in (5, 64, 65, 129, 130, 199):
        fresh = engine.new_state()
        wanted = prefill(fresh, ids[:count]).copy()
        for held in (16, 33, 129, 200):
            state = engine.new_state()
            prefill(state, ids[:held])
            reused = reusable_prefix(state, ids[:count], engine.info.prefill_step)
            assert reused >= min(count, held) - 3
            state.rewind(reused)
            assert np.array_equal(prefill(state, ids[reused:count]), wanted), (count, held)
            state.close()
        fresh.close()
    engine.close()
