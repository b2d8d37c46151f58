"""How models, chats, hybrid clients and servers move to what takes a runtime's place; the engines
are fake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_engine import FakeEngine, fake_model

from edgesdk.engines.base import Placement
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.router import DeviceSpeed
from edgesdk.model import Model
from edgesdk.runtime import Runtime


def runtime_on(device: str) -> tuple[FakeEngine, Runtime]:
    engine = FakeEngine(f"On {device}.".encode())
    engine.info = replace(engine.info, placement=Placement(device))
    return engine, fake_model(engine).runtime


class HandMade:
    """Implements `edgesdk.runtime.Successor`."""

    def __init__(self) -> None:
        self.runtime: Runtime | None = None
        self.closed = False

    def take(self) -> Runtime | None:
        return self.runtime

    def close(self) -> None:
        self.closed = True


def test_a_chat_moves_between_turns_and_keeps_its_history() -> None:
    successor = HandMade()
    _, runtime = runtime_on("cpu")
    npu, later = runtime_on("npu")
    model = Model("tiny", replace(runtime, successor=successor))
    chat = model.chat(system="Be brief.")
    assert chat.respond("One?").receipt.device == "cpu"
    stream = chat.stream("Two?")
    next(stream)
    # In the middle of an answer: it ends where it began.
    successor.runtime = later
    list(stream)
    assert (stream.reply.text, stream.reply.receipt.device) == ("On cpu.", "cpu")
    third = chat.respond("Three?")
    assert (third.text, third.receipt.device) == ("On npu.", "npu")
    said = [message["content"] for message in chat.messages]
    assert said == ["Be brief.", "One?", "On cpu.", "Two?", "On cpu.", "Three?", "On npu."]
    # The device computed all of it, as if the chat had been there from the start.
    assert third.receipt.cached_tokens == 0
    assert bytes(npu.states[0].tokens).startswith(b"system: Be brief.\nuser: One?\n\x02On cpu.")
    assert chat.respond("Four?").receipt.cached_tokens > third.receipt.prompt_tokens
    assert model.device.device == "npu"
    assert model.respond("Five?").receipt.device == "npu"


def warming() -> tuple[Model, HandMade, FakeEngine, FakeEngine, Runtime]:
    """A model on the CPU; what moves it; both engines; and the runtime that it is to move to."""
    successor = HandMade()
    cpu, runtime = runtime_on("cpu")
    npu, later = runtime_on("npu")
    return Model("tiny", replace(runtime, successor=successor)), successor, cpu, npu, later


def test_a_chat_that_moves_before_it_is_saved_goes_on_with_the_device(tmp_path: Path) -> None:
    model, successor, _, npu, later = warming()
    npu.kv_identity = replace(npu.kv_identity, engine="npu")
    chat = model.chat()
    chat.respond("One?")
    successor.runtime = later
    chat.save(tmp_path / "chat")
    restored = model.restore(tmp_path / "chat")
    assert [message["content"] for message in restored.messages] == ["One?", "On cpu."]
    assert restored.respond("Two?").text == "On npu."


def test_a_hybrid_client_and_its_chats_move_between_turns(tmp_path: Path) -> None:
    model, successor, cpu, npu, later = warming()
    with HybridClient(model) as client, client.chat(system="Be brief.") as chat:
        assert client.respond("Alone?").text == "On cpu."
        assert chat.respond("One?").text == "On cpu."
        stream = chat.stream("Two?")
        next(stream)
        successor.runtime = later
        list(stream)
        assert stream.reply.text == "On cpu."
        with chat.fork() as fork:
            third = fork.respond("Three?")
        assert (third.text, third.local and third.local.receipt.cached_tokens) == ("On npu.", 0)
        assert bytes(npu.states[0].tokens).startswith(b"system: Be brief.\nuser: One?\n\x02On cpu.")
        third = chat.respond("Three?")
        fourth = chat.respond("Four?")
        assert third.text == fourth.text == "On npu."
        assert fourth.local is not None
        assert fourth.local.receipt.cached_tokens > 0
        chat.save(tmp_path / "chat")
        assert client.respond("Alone?").text == "On npu."
    assert all(state.closed for state in [*cpu.states, *npu.states])


def test_a_saved_hybrid_chat_leaves_the_caches_of_the_cpu_behind(tmp_path: Path) -> None:
    model, successor, cpu, npu, later = warming()
    npu.kv_identity = replace(npu.kv_identity, engine="npu")
    with HybridClient(model) as client, client.chat() as chat:
        chat.respond("One?")
        successor.runtime = later
        chat.save(tmp_path / "chat")
        assert all(state.closed for state in cpu.states)
        with client.restore(tmp_path / "chat") as restored:
            assert restored.respond("Two?").text == "On npu."


def test_speeds_of_another_device_are_forgotten() -> None:
    model, successor, _, _, later = warming()
    receipt = replace(model.respond("One?").receipt, decode_seconds=10.0, tokens=[7] * 11)
    speed = DeviceSpeed(decode=1000.0)
    speed.observe(receipt)
    assert speed.seconds(0, 5) == pytest.approx(5.0)
    successor.runtime = later
    speed.observe(replace(model.respond("Two?").receipt, decode_seconds=1.0, tokens=[7] * 11))
    assert speed.seconds(0, 5) == pytest.approx(0.5)


def test_closing_a_model_ends_what_gets_ready() -> None:
    successor = HandMade()
    _, runtime = runtime_on("cpu")
    Model("tiny", replace(runtime, successor=successor)).close()
    assert successor.closed
