"""A server whose model moves from the CPU to its device between two answers."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from support.fake_engine import FakeEngine
from support.served import FakeModels, Gate, client_of, served, wait_for

from edgesdk.engines.base import Placement
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.model import Model
from edgesdk.runtime import Runtime
from edgesdk.server.hybrid_routing import HybridClients

pytestmark = pytest.mark.e2e

# Never asked: the device is always sure enough.
NOBODY = Cloud("http://127.0.0.1:9/v1", "big", "key")


class SlowDevice:
    """Implements `edgesdk.runtime.Successor` for a device that gets ready when the test says so."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.ready = False

    def take(self) -> Runtime | None:
        return self._runtime if self.ready else None

    def close(self) -> None:
        pass


class WarmingModels(FakeModels):
    """One model, "tiny", which the CPU answers for until `device` is ready."""

    def __init__(self, gate: Gate) -> None:
        self.cpu = FakeEngine(b"On cpu.", before_extend=gate)
        self.npu = FakeEngine(b"On npu.")
        self.npu.info = replace(self.npu.info, placement=Placement("npu"))
        super().__init__(tiny=lambda: self.cpu)

    def load(self, name: str) -> Model:
        runtime = super().load(name).runtime
        self.device = SlowDevice(replace(runtime, engine=self.npu))
        return Model(name, replace(runtime, successor=self.device))


@pytest.mark.parametrize("hybrid", [False, True])
def test_the_next_request_goes_to_the_device(hybrid: bool) -> None:
    gate = Gate()
    models = WarmingModels(gate)
    clients = HybridClients(
        lambda model: HybridClient(
            model, cloud=NOBODY, policy=Policy("redact"), confidence=Confidence(threshold=0.0)
        ),
        Policy("redact"),
    )
    with (
        served(models, clients if hybrid else None) as server,
        client_of(server) as client,
        ThreadPoolExecutor(1) as meanwhile,
    ):

        def ask(*texts: str) -> tuple[str, int]:
            """The answer to a conversation, and how many of its tokens were cached."""
            roles = ("user", "assistant")
            messages: Any = [
                {"role": role, "content": text}
                for role, text in zip(itertools.cycle(roles), texts, strict=False)
            ]
            answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
            usage = answer.usage
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            cached = usage.prompt_tokens_details.cached_tokens
            return answer.choices[0].message.content or "", cached or 0

        assert ask("One?") == ("On cpu.", 0)
        gate.shut()
        under_way = meanwhile.submit(ask, "Meanwhile?")
        wait_for(lambda: len(models.cpu.states) == 2)
        models.device.ready = True
        assert ask("One?", "On cpu.", "Two?") == ("On npu.", 0)
        gate.open()
        assert under_way.result()[0] == "On cpu."
        text, cached = ask("One?", "On cpu.", "Two?", "On npu.", "Three?")
        assert text == "On npu."
        assert cached > 0
        assert all(state.closed for state in models.cpu.states)
