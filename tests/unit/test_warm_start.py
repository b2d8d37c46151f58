"""How a model and its chats move to what takes their runtime's place; the engines are fake."""

from __future__ import annotations

from dataclasses import replace

from support.fake_engine import FakeEngine, fake_model

from edgesdk.engines.base import Placement
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


def test_closing_a_model_ends_what_gets_ready() -> None:
    successor = HandMade()
    _, runtime = runtime_on("cpu")
    Model("tiny", replace(runtime, successor=successor)).close()
    assert successor.closed
