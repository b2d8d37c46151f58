"""A fake engine that gives written answers one after another, for models that call tools."""

from __future__ import annotations

import json
from typing import Any

from edgesdk.chat import Chat
from edgesdk.engines.base import Logits
from edgesdk.overflow import OverflowPolicy
from tests.support.fake_engine import END, OPEN, FakeEngine, fake_model

# A template that knows tools and results, and writes calls like Hermes.
HERMES_TEMPLATE = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}\x02{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{% if not loop.first or m.content %}{{ '\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments":'
    " {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}\x03"
    "{% elif m.role == 'tool' %}{{ m.name }} gave {{ m.content }}\n"
    "{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}\x02{% endif %}"
)


def call(name: str, /, **arguments: Any) -> str:
    """A call as an answer's text."""
    written = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{written}\n</tool_call>"


class ScriptEngine(FakeEngine):
    """Gives the answers one after another; `prompts` are those that it was given."""

    def __init__(
        self,
        answers: tuple[str, ...],
        *,
        context_length: int = 4096,
        probability: float | None = None,
    ) -> None:
        super().__init__(context_length=context_length, probability=probability)
        self.answers = [answer.encode() for answer in answers]
        self.prompts: list[str] = []

    def logits(self, tokens: list[int]) -> Logits:
        # Within an answer it is a drafted token, which is verified.
        if tokens[-1] == OPEN and tokens.count(OPEN) == tokens.count(END) + 1:
            self.answer = self.answers[min(len(self.prompts), len(self.answers) - 1)]
            self.prompts.append(bytes(tokens).decode())
        return super().logits(tokens)


def script_chat(
    *answers: str,
    template: str = HERMES_TEMPLATE,
    overflow: OverflowPolicy = "error",
    context_length: int = 4096,
) -> tuple[Chat, list[str]]:
    """A chat whose model gives these answers, and the list of its prompts."""
    engine = ScriptEngine(answers, context_length=context_length)
    return fake_model(engine, template=template).chat(overflow=overflow), engine.prompts
