"""Chats of several threads on one engine: cancelled, late, dropped, forked, and never mixed up.

Every thread lives a life by a seed: it asks, cancels from another thread at some moment, sets
deadlines, drops streams without a word, forks and leaves chats. Each answer that survived is then
made again, alone, from the same conversation: its tokens must be the same.

The models are tiny, random and in float32. Kernels of other batch sizes round differently, which
can decide between two tokens that are nearly as likely: there, and only there, an answer may part
from the one that was made alone. A token of another caller would change logits by 2.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from support.tiny_models import make_tiny
from tiny_onnx_bundle import write_tiny_bundle

from edgesdk.chat import Chat
from edgesdk.engines.registry import open_engine
from edgesdk.errors import DeadlineExceeded
from edgesdk.model import Model
from edgesdk.reply import Reply
from edgesdk.runtime import Runtime
from edgesdk.text.prompts import PromptEncoder
from edgesdk.text.template import ChatTemplate

pytestmark = pytest.mark.integration

CONTEXT = 500
# One character for each token that both tiny models have.
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 <"
TEMPLATE = "{% for m in messages %}<{{ m.content }}{% endfor %}<"


class LetterTokenizer:
    """Implements `Tokenizer`; no token ends an answer, so only the caller's wishes do."""

    vocab_size = len(LETTERS)
    eos_token_ids: frozenset[int] = frozenset()
    added_tokens: Mapping[str, int] = MappingProxyType({})
    special_token_ids: frozenset[int] = frozenset()

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        return [LETTERS.index(letter) for letter in text]

    def encode_pieces(
        self, pieces: Sequence[tuple[str, bool]], control: Mapping[int, str]
    ) -> list[int]:
        raise AssertionError("this vocabulary has no control tokens that a text could name")

    def token_bytes(self, token: int) -> bytes:
        return LETTERS[token % len(LETTERS)].encode()


@dataclass(frozen=True)
class Answered:
    """A turn that survived: the conversation up to its question, and the reply."""

    before: list[dict[str, Any]]
    question: str
    reply: Reply


@pytest.fixture(scope="module", params=["onnx", "gguf"])
def model(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Model]:
    folder: Path = tmp_path_factory.mktemp("tiny")
    if request.param == "onnx":
        source: Any = write_tiny_bundle(folder / "tiny")
    else:
        pytest.importorskip("llama_cpp")
        from support.tiny_ggufs import write_tiny_gguf

        checkpoint = make_tiny("llama", folder / "checkpoint", max_position_embeddings=512)
        source = folder / "tiny.gguf"
        write_tiny_gguf(checkpoint, source)
    engine = open_engine(source, threads=1, context=CONTEXT)
    encoder = PromptEncoder(LetterTokenizer(), ChatTemplate(TEMPLATE), None, None)
    opened = Model("tiny", Runtime(engine, encoder, 0.0))
    yield opened
    opened.close()


def words(chooser: random.Random, letters: str) -> str:
    """A question; long ones go through the engine in several parts."""
    return "".join(chooser.choices(letters, k=chooser.choice([3, 10, 90])))


def life(model: Model, seed: int) -> list[Answered]:
    """What survived of it."""
    chooser = random.Random(seed)
    # A thread has letters of its own, so that a mix-up shows in the distributions.
    letters = "".join(chooser.sample(LETTERS[:-1], 9))
    chats: list[Chat] = [model.chat()]
    survived: list[Answered] = []

    def ask(chat: Chat) -> None:
        before, question = chat.messages, words(chooser, letters)
        count = chooser.randint(1, 12)
        way = chooser.choice(["whole", "whole", "cancel", "leave", "drop", "deadline"])
        deadline = chooser.uniform(0, 0.02) if way == "deadline" else None
        stream = chat.stream(
            question, max_tokens=count, deadline=deadline, priority=chooser.randint(-2, 2)
        )
        if way == "cancel":
            # At some moment of the prefill or the decode, or after the end.
            threading.Timer(chooser.uniform(0, 0.02), stream.cancel).start()
        if way in ("leave", "drop"):
            for _, _ in zip(range(chooser.randint(0, 3)), stream, strict=False):
                pass
            if way == "leave":
                stream.close()
            return  # its last reference goes
        try:
            for _ in stream:
                pass
        except DeadlineExceeded:
            return
        # What there is of a cancelled answer is right as well.
        survived.append(Answered(before, question, stream.reply))

    for _ in range(14):
        at = chooser.randrange(len(chats))
        chat = chats[at]
        if len(chat.messages) > 5 or chooser.random() < 0.1:
            chat.close()
            chats[at] = model.chat()
        elif chooser.random() < 0.25 and len(chats) < 3:
            chats.append(chat.fork())
        else:
            ask(chat)
    for chat in chats:
        chat.close()
    return survived


def check(model: Model, answered: Answered) -> bool:
    """Whether the answer is the one made alone; raises where it parts without a near tie."""
    reply, tokens = answered.reply, answered.reply.tokens
    if not tokens:
        return True
    runtime = model.runtime
    alone = Chat(runtime, turns=answered.before).respond(answered.question, max_tokens=len(tokens))
    if alone.tokens == tokens:
        return True
    place = next(i for i, (a, b) in enumerate(zip(tokens, alone.tokens, strict=True)) if a != b)
    asked = [*answered.before, {"role": "user", "content": answered.question}]
    state = runtime.engine.new_state()
    row = state.extend([*runtime.encoder.chat(asked), *alone.tokens[:place]])[0]
    gap = float(row.max() - row[tokens[place]])
    state.close()
    # llama.cpp keeps the KV cache in float16.
    limit = 5e-3 if runtime.engine.info.name.startswith("onnx") else 0.5
    assert gap < limit, (reply.receipt, gap)
    return False


def all_through(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()


@pytest.mark.parametrize("seed", range(2))
def test_lives_of_chats_at_once(model: Model, seed: int) -> None:
    survived: dict[int, list[Answered]] = {}
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            survived[number] = life(model, 100 * seed + number)
        except BaseException as error:
            errors.append(error)

    all_through([threading.Thread(target=run, args=(n,), daemon=True) for n in range(6)])
    assert not errors, errors[0]
    assert model.runtime.scheduler.waiting == 0
    answers = [answered for number in survived for answered in survived[number]]
    same = [check(model, answered) for answered in answers]
    assert sum(map(len, (a.reply.tokens for a in answers))) > 50
    assert sum(same) >= 0.8 * len(same)
    # All of it is free again: as many sequences can be had as ever.
    fresh = [model.runtime.engine.new_state() for _ in range(64)]
    for state in fresh:
        state.close()


async def test_tasks_at_once(model: Model) -> None:
    """asyncio tasks share the model; every third is cancelled under way."""
    chooser = random.Random(5)
    chats = [model.chat() for _ in range(12)]
    questions = [words(chooser, "".join(chooser.sample(LETTERS[:-1], 9))) for _ in chats]

    async def ask(number: int) -> Answered:
        first = await chats[number].arespond(questions[number], max_tokens=4)
        before = chats[number].messages
        assert first.tokens
        reply = await chats[number].arespond(questions[number], max_tokens=8)
        return Answered(before, questions[number], reply)

    tasks = [asyncio.create_task(ask(number)) for number in range(len(chats))]
    await asyncio.sleep(0.01)
    for task in tasks[::3]:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    answers = [one for one in found if isinstance(one, Answered)]
    assert len(answers) >= 8
    assert all(isinstance(one, (Answered, asyncio.CancelledError)) for one in found)
    same = [check(model, answered) for answered in answers]
    assert sum(same) >= 0.8 * len(same)
    for number, chat in enumerate(chats):
        # Those that were cancelled go on as well.
        assert chat.respond(questions[number], max_tokens=2).tokens
        chat.close()


def test_a_stop_in_a_shared_batch_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp ends the whole batch; who still wants tokens gets the same ones from the next."""
    pytest.importorskip("llama_cpp")
    from llama_cpp import llama_cpp as api
    from support.tiny_ggufs import write_tiny_gguf

    from edgesdk.system.cancellation import CancellationToken, Cancelled

    checkpoint = make_tiny("llama", tmp_path / "checkpoint", max_position_embeddings=512)
    write_tiny_gguf(checkpoint, tmp_path / "tiny.gguf")
    engine = open_engine(tmp_path / "tiny.gguf", threads=1, context=CONTEXT, batch_invariant=False)
    stays, goes, leads = (engine.new_state() for _ in range(3))
    for state in (stays, goes):
        state.extend([10, 20, 30])
    twin = stays.fork()
    wanted = twin.extend([40])[0].copy()
    cancellation = CancellationToken()
    decode, statuses = api.llama_decode, []
    entered, proceed = threading.Event(), threading.Event()

    def watched(native: Any, batch: Any) -> int:
        if not statuses:
            entered.set()
            assert proceed.wait(30)
        elif int(batch.n_tokens) == 2:
            cancellation.cancel()  # the batch of both begins
        statuses.append((int(batch.n_tokens), int(decode(native, batch))))
        return int(statuses[-1][1])

    monkeypatch.setattr(api, "llama_decode", watched)
    found: list[Any] = []
    interrupted: list[bool] = []

    def step() -> None:
        found.append(stays.extend([40], cancellation=CancellationToken())[0].copy())

    def stop() -> None:
        try:
            goes.extend([50], cancellation=cancellation)
        except Cancelled:
            interrupted.append(True)

    def release() -> None:
        tick = threading.Event()
        while engine._context.lock.waiting < 2:  # type: ignore[attr-defined]
            tick.wait(0.001)
        proceed.set()

    leader = threading.Thread(target=lambda: leads.extend([1]), daemon=True)
    leader.start()
    assert entered.wait(30)
    all_through([threading.Thread(target=work, daemon=True) for work in (step, stop, release)])
    leader.join(30)

    assert statuses == [(1, 0), (2, 2), (1, 0)], "both were in a batch, which was ended"
    assert interrupted == [True]
    assert goes.tokens == (10, 20, 30)
    assert stays.tokens == (10, 20, 30, 40)
    assert abs(found[0] - wanted).max() < 0.3
    # And the one that stopped goes on where it was.
    assert abs(goes.extend([40])[0] - wanted).max() < 0.3
    engine.close()
