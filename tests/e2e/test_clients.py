"""Client libraries as their users have them, against a real server: each in its own environment.

`small` is SmolLM2 on llama.cpp. `agent` is scripted, because an agent's turns need a model that
knows what to do: it calls a tool where it has one and no result yet, and then says the weather.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client_environments import python_with
from support.fake_engine import OPEN, FakeEngine
from support.script_engine import HERMES_TEMPLATE, call
from support.served import FakeModels, Served, served

import edgesdk
from edgesdk.engines.base import Logits
from edgesdk.model import Model

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]
PROGRAMS = Path(__file__).parent / "client_programs"
CLIENTS = {
    "openai_python": ("openai==2.54.0",),
    "litellm_python": ("litellm==1.110.2",),
    "langchain_python": ("langchain-openai==1.4.3",),
    "instructor_python": ("instructor==1.17.0",),
    "pydantic_ai_python": ("pydantic-ai-slim[openai]==2.31.1",),
    "openai_agents_python": ("openai-agents==0.20.0",),
    "llm_python": ("llm==0.32.1",),
    "smolagents_python": ("smolagents[openai]==1.26.0",),
}
ANSWER = '{"city":"Lima","degrees":21}'


class AgentEngine(FakeEngine):
    """Calls a tool once, and then says the weather."""

    def logits(self, tokens: list[int]) -> Logits:
        if tokens[-1] == OPEN:
            prompt = bytes(tokens).decode()
            turn = prompt.rpartition("user: ")[2]
            has_tools, has_result = prompt.startswith("tools: "), " gave " in turn
            arguments = {"city": "Lima"}
            if "degrees" in prompt.partition("\n")[0]:
                # The tool is a form of the answer.
                arguments |= {"degrees": 21}
            # Whatever the tool is called: the first name in the list.
            name = prompt.partition('"name": "')[2].partition('"')[0]
            calls = has_tools and not has_result
            self.answer = (call(name, **arguments) if calls else ANSWER).encode()
        return super().logits(tokens)


class AgentAndSmallModels(FakeModels):
    """A scripted model, and a real one."""

    def __init__(self, small: Path) -> None:
        agent = {"agent": lambda: AgentEngine(context_length=8192), "small": FakeEngine}
        super().__init__(template=HERMES_TEMPLATE, **agent)
        self._small = small

    def load(self, name: str) -> Model:
        if name == "small":
            return edgesdk.load(str(self._small), context=2048)
        return super().load(name)


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path) -> Iterator[Served]:
    with served(AgentAndSmallModels(smollm2_gguf)) as running:
        yield running


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_does_what_its_users_do(client: str, server: Served) -> None:
    python = python_with(*CLIENTS[client])
    # None may find this project's own packages, or a proxy.
    kept = {key: os.environ[key] for key in ("HOME", "PATH") if key in os.environ}
    done = subprocess.run(
        [python, PROGRAMS / f"{client}.py", f"{server.url}/v1"],
        env={**kept, "NO_PROXY": "*", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
