"""Chats and prompt beginnings that outlive their process, on both engines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.other_process import run_python

import edgesdk
from edgesdk.bundle.opening import Bundle
from edgesdk.errors import ContextOverflow, RequestError
from edgesdk.model import Model

pytestmark = pytest.mark.integration

SYSTEM = "You are a terse guide to the rivers of Europe. " + " ".join(
    f"Fact {n}: river number {n} is {40 * n} km long and flows past {n % 7} towns."
    for n in range(1, 16)
)
RESTORE = """
import json, sys, edgesdk
with edgesdk.load(sys.argv[1], threads=1) as model, model.restore(sys.argv[2]) as chat:
    before = len(chat.messages)
    reply = chat.respond("And which is the longest?", max_tokens=12)
print(json.dumps([before, reply.text, reply.receipt.prompt_tokens, reply.receipt.cached_tokens]))
"""
ASK = """
import json, sys, edgesdk
from pathlib import Path
with edgesdk.load(sys.argv[1], threads=1, prefix_cache=Path(sys.argv[2])) as model:
    with model.chat(sys.argv[3]) as chat:
        reply = chat.respond(sys.argv[4], max_tokens=8)
print(json.dumps([reply.text, reply.receipt.prompt_tokens, reply.receipt.cached_tokens]))
"""


@dataclass(frozen=True)
class Case:
    model: Model
    place: Path
    other: Path


@pytest.fixture(scope="module", params=["onnx", "gguf"])
def case(
    request: pytest.FixtureRequest, smollm2_int4: Bundle, smollm2_gguf: Path
) -> Iterator[Case]:
    places = {"onnx": smollm2_int4.path, "gguf": smollm2_gguf}
    if request.param == "gguf":
        pytest.importorskip("llama_cpp")
    place = places.pop(request.param)
    with edgesdk.load(place, threads=1) as model:
        yield Case(model, place, *places.values())


def test_a_second_process_goes_on_without_prefill(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "rivers.chat"
    with case.model.chat(SYSTEM) as chat:
        first = chat.respond("Name two rivers.", max_tokens=12)
        chat.save(path)
        wanted = chat.respond("And which is the longest?", max_tokens=12)
    before, text, prompt_tokens, cached_tokens = run_python(RESTORE, str(case.place), str(path))
    assert before == 3
    step = case.model.runtime.engine.info.prefill_step
    assert first.receipt.prompt_tokens - step < cached_tokens < prompt_tokens
    # The first answer, which single steps computed, and the second question.
    assert prompt_tokens - cached_tokens < 24 + first.receipt.output_tokens + step
    assert (text, prompt_tokens) == (wanted.text, wanted.receipt.prompt_tokens)


def test_another_engine_refuses_it(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "a.chat"
    with case.model.chat() as chat:
        chat.respond("Hello", max_tokens=4)
        chat.save(path)
    with (
        edgesdk.load(case.other, threads=1) as other,
        pytest.raises(RequestError, match="another engine"),
    ):
        other.restore(path)


def test_a_smaller_context_refuses_it(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "a.chat"
    with case.model.chat() as chat:
        chat.respond("Hello", max_tokens=4)
        chat.save(path)
    with (
        edgesdk.load(case.place, threads=1, context=16) as small,
        pytest.raises(ContextOverflow),
    ):
        small.restore(path)


def test_flipped_bytes_are_refused(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "a.chat"
    with case.model.chat() as chat:
        chat.respond("Hello", max_tokens=4)
        chat.save(path)
    whole = path.read_bytes()
    for part in range(40):
        damaged = bytearray(whole)
        damaged[len(whole) * part // 40] ^= 1 << part % 8
        path.write_bytes(damaged)
        with pytest.raises(RequestError):
            case.model.restore(path)
    path.write_bytes(whole)
    case.model.restore(path).close()


def test_forks_answer_as_the_chat_they_come_from(case: Case) -> None:
    with case.model.chat(SYSTEM) as chat:
        chat.respond("Name two rivers.", max_tokens=12)
        with chat.fork() as aside:
            aside.respond("Forget the rivers, name two lakes.", max_tokens=12)
            with chat.fork() as twin:
                again = twin.respond("And which is the longest?", max_tokens=12)
        wanted = chat.respond("And which is the longest?", max_tokens=12)
    assert again.text == wanted.text
    assert again.receipt.cached_tokens == wanted.receipt.cached_tokens > 200


def test_a_system_message_is_computed_by_one_process_only(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    arguments = (str(case.place), str(folder), SYSTEM)
    _, _, cached = run_python(ASK, *arguments, "Name two rivers.")
    assert cached == 0
    [kept] = folder.glob("*/*.kv")
    length = int(kept.name.partition("-")[0])
    text, tokens, cached = run_python(ASK, *arguments, "Name a town.")
    step = case.model.runtime.engine.info.prefill_step
    assert tokens - 16 < length
    assert cached == length // step * step
    with case.model.chat(SYSTEM) as chat:
        wanted = chat.respond("Name a town.", max_tokens=8)
    assert (text, tokens) == (wanted.text, wanted.receipt.prompt_tokens)


@pytest.mark.parametrize("policy", ["drop_oldest_turns", "summarize"])
def test_a_full_context_makes_room(case: Case, policy: str) -> None:
    with (
        edgesdk.load(case.place, threads=1, context=320) as small,
        small.chat("You are terse.", overflow=policy) as chat,  # type: ignore[arg-type]
    ):
        records = []
        for n in range(6):
            reply = chat.respond(f"Tell me about the number {n}, in brief.", max_tokens=48)
            assert reply.tokens
            records.append(reply.receipt.overflow)
        assert chat.messages[0]["content"] == "You are terse."
    [first, *_] = [record for record in records if record is not None]
    assert first.policy == policy
    assert first.turns_dropped >= 1
    assert first.tokens_after < first.tokens_before
    if policy == "summarize":
        assert 0 < first.summary_tokens <= 40
        assert first.seconds > 0
