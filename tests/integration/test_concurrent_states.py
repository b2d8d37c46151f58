"""Several threads on one engine: each gets what it would get alone.

Every thread extends, rewinds, forks and leaves sequences at random, by a seed. The same operations
are then run alone, one thread after the other, on the engine; tokens must be the same, and logits
too where the engine promises that, else as close as a batch of another size lets them be.

The models are tiny, random and in float32: one token of another caller changes their logits by 2
(the median), kernels of other batch sizes by less than 0.1. Quantized weights would blur the two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_models import make_tiny
from tiny_onnx_bundle import VOCAB, write_tiny_bundle

from edgesdk.engines.base import DecodeState, Engine, Logits
from edgesdk.engines.registry import open_engine
from edgesdk.errors import EngineError
from edgesdk.loading import load

pytestmark = pytest.mark.integration

THREADS, CONTEXT = 4, 400
Trace = list[tuple[tuple[int, ...], Logits]]


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: Any) -> Path:
    pytest.importorskip("llama_cpp")
    from support.tiny_ggufs import write_tiny_gguf

    folder: Path = tmp_path_factory.mktemp("gguf")
    model = make_tiny("llama", folder / "checkpoint", max_position_embeddings=512)
    write_tiny_gguf(model, folder / "tiny.gguf")
    return folder / "tiny.gguf"


@pytest.fixture(scope="module", params=["onnx", "gguf", "gguf in shared batches"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Engine]:
    if request.param == "onnx":
        source: Any = write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny")
    else:
        source = request.getfixturevalue("tiny_gguf")
    with pytest.MonkeyPatch.context() as patch:
        # The least that llama.cpp makes, so that the cache also grows under way.
        patch.setattr("edgesdk.engines.gguf.native_model.FIRST_CELLS", 256)
        invariant = request.param != "gguf in shared batches"
        opened = open_engine(source, threads=1, context=CONTEXT, batch_invariant=invariant)
    yield opened
    opened.close()


def same(engine: Engine, found: Logits, alone: Logits) -> bool:
    """Whether logits are those of the run alone, the kernels' rounding allowed for."""
    if engine.info.name.startswith("onnx"):
        return bool(np.abs(found - alone).max() < 2e-3)
    if engine.info.batch_invariant:
        return bool(np.array_equal(found, alone))
    # llama.cpp keeps the KV cache in float16.
    return bool(np.abs(found - alone).max() < 0.3)


def life(engine: Engine, seed: int, ready: threading.Barrier | None = None) -> Trace:
    """Operations at random; the tokens and the logits after each."""
    rng = np.random.default_rng(seed)
    # A thread has words of its own, so that a mix-up shows in the distributions.
    words = rng.integers(0, engine.info.vocab_size, 12)
    alive: list[DecodeState] = [engine.new_state()]
    trace: Trace = []
    if ready is not None:
        ready.wait(30)
    for _ in range(25):
        at = int(rng.integers(len(alive)))
        state = alive[at]
        action = rng.choice(["step", "step", "step", "short", "long", "rewind", "fork", "leave"])
        if action == "fork" and len(alive) < 3:
            alive.append(state.fork())
        elif action == "leave":
            state.close()
            alive[at] = engine.new_state()
        elif action == "rewind":
            state.rewind(int(rng.integers(len(state.tokens) + 1)))
        else:
            count = {"short": int(rng.integers(2, 9)), "long": int(rng.integers(65, 100))}
            ids = rng.choice(words, count.get(str(action), 1))
            if len(state.tokens) + len(ids) > CONTEXT:
                state.rewind(0)
            rows = state.extend(ids, logits="all" if rng.random() < 0.3 else "last")
            trace.append((state.tokens, rows.copy()))
        trace.append((alive[at].tokens, np.zeros((1, 1), np.float32)))
    for state in alive:
        state.close()
    return trace


def together(works: list[Callable[[], None]]) -> None:
    """Run each in a thread of its own; the first error of one is raised."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("seed", range(2))
def test_random_lives_at_once(engine: Engine, seed: int) -> None:
    found: dict[int, Trace] = {}
    ready = threading.Barrier(THREADS)

    def run(number: int) -> None:
        found[number] = life(engine, 100 * seed + number, ready)

    together([lambda number=number: run(number) for number in range(THREADS)])  # type: ignore[misc]
    for number in range(THREADS):
        alone = life(engine, 100 * seed + number)
        assert [tokens for tokens, _ in found[number]] == [tokens for tokens, _ in alone]
        for (_, mine), (_, wanted) in zip(found[number], alone, strict=True):
            assert same(engine, mine, wanted)


def test_chats_at_once_keep_their_tokens(smollm2_gguf: Path) -> None:
    """Each answer is made of tokens that its own conversation makes likely, cancelled or not."""
    pytest.importorskip("llama_cpp")
    questions = ["Count from one to ten.", "Name three fruits.", "What is the sea?", "Say hello."]
    with load(smollm2_gguf, threads=1, context=CONTEXT) as model:
        held: dict[int, list[int]] = {}

        def run(number: int) -> None:
            chat = model.chat()
            cut = chat.stream(questions[number - 1], max_tokens=12)
            next(cut)
            cut.close()
            reply = chat.respond(questions[number], max_tokens=10)
            held[number] = [reply.receipt.prompt_tokens, *reply.tokens]
            chat.close()

        together([lambda number=number: run(number) for number in range(4)])  # type: ignore[misc]
        runtime = model.runtime
        for number, question in enumerate(questions):
            prompt = runtime.encoder.chat([{"role": "user", "content": question}])
            size, *answer = held[number]
            assert size == len(prompt)
            state = runtime.engine.new_state()
            rows = state.extend([*prompt, *answer], logits="all")[len(prompt) - 1 : -1]
            lead = rows.max(axis=1) - rows[np.arange(len(answer)), answer]
            # Greedy: the likeliest token, or nearly so where the batches' rounding decided.
            assert lead.max() < 3.0
            state.close()


def test_an_error_in_a_shared_batch_hits_only_its_own(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_cpp")
    from llama_cpp import llama_cpp as api

    engine = open_engine(tiny_gguf, threads=1, context=CONTEXT, batch_invariant=False)
    good = [engine.new_state() for _ in range(3)]
    bad = engine.new_state()
    for number, state in enumerate([*good, bad]):
        state.extend([10 + number, 20, 30])
    wanted = [twin.extend([40])[0].copy() for twin in [one.fork() for one in good]]
    # llama.cpp now holds less of it than the engine believes, and refuses a gap in the positions.
    context = bad._context  # type: ignore[attr-defined]
    context.remove(bad._id, 1)  # type: ignore[attr-defined]
    decode, sizes = api.llama_decode, []
    entered, proceed = threading.Event(), threading.Event()

    def slow(native: Any, batch: Any) -> int:
        sizes.append(int(batch.n_tokens))
        if len(sizes) == 1:
            entered.set()
            proceed.wait(30)
        return int(decode(native, batch))

    monkeypatch.setattr(api, "llama_decode", slow)
    first = engine.new_state()
    failures: list[EngineError] = []
    found: dict[int, Logits] = {}

    def step(number: int) -> None:
        found[number] = good[number].extend([40])[0].copy()

    def fail() -> None:
        try:
            bad.extend([40])
        except EngineError as error:
            failures.append(error)

    def release() -> None:
        assert entered.wait(30)
        tick = threading.Event()
        while context.lock.waiting < 4:
            tick.wait(0.001)
        proceed.set()

    def lead() -> None:
        first.extend([1])

    leader = threading.Thread(target=lead, daemon=True)
    leader.start()
    assert entered.wait(30)
    works = [lambda number=number: step(number) for number in range(3)]  # type: ignore[misc]
    together([*works, fail, release])
    leader.join(timeout=30)
    assert sizes[:2] == [1, 4], "the four that waited shared a batch"
    assert len(failures) == 1
    for number in range(3):
        assert same(engine, found[number][None], wanted[number][None])
        assert good[number].tokens == (10 + number, 20, 30, 40)
    assert bad.tokens == (13, 20, 30)
    engine.close()


def test_prompts_are_cut_at_fixed_positions(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_cpp")
    from llama_cpp import llama_cpp as api

    engine = open_engine(tiny_gguf, threads=1, context=CONTEXT)
    decode, sizes = api.llama_decode, []

    def noted(native: Any, batch: Any) -> int:
        sizes.append(int(batch.n_tokens))
        return int(decode(native, batch))

    monkeypatch.setattr(api, "llama_decode", noted)
    state = engine.new_state()
    state.extend(np.arange(200) % VOCAB)
    state.extend([1])
    state.extend(np.arange(100) % VOCAB)
    other = engine.new_state()
    other.extend(np.arange(200) % VOCAB)
    assert sizes == [192, 8, 1, 55, 45, 64, 64, 64, 8]
    engine.close()


@pytest.mark.parametrize("other", [1, 5, 60])
def test_a_prompt_right_after_another_answer_is_computed_as_alone(
    smollm2_gguf: Path, other: int
) -> None:
    """A state that is closed is nobody to share batches with: shorter pieces round otherwise."""
    engine = open_engine(smollm2_gguf, threads=1, context=256)
    prompt = [100 + 7 * n for n in range(100)]

    def computed() -> Logits:
        state = engine.new_state()
        try:
            return state.extend(prompt).copy()
        finally:
            state.close()

    try:
        alone = computed()
        for _ in range(3):
            before = engine.new_state()
            before.extend(prompt[:other])
            before.close()
            np.testing.assert_array_equal(computed(), alone)
    finally:
        engine.close()
