"""Models that reason before they answer, with answers that are written beforehand."""

from __future__ import annotations

from support.fake_engine import fake_model
from support.script_engine import ScriptEngine

from edgesdk.model import Model

# As Qwen3's: the model opens the reasoning itself, and a switch has an empty one written for it.
# Reasoning of earlier turns is left out; that since the user's latest message stays, for tools.
SWITCHED = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}\x02"
    "{% if m.reasoning_content and loop.index0 > ns.last %}<think>\n{{ m.reasoning_content }}\n"
    "</think>\n\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments":'
    " {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}\x03"
    "{% elif m.role == 'tool' %}{{ m.name }} gave {{ m.content }}\n"
    "{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% if add_generation_prompt %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "\x02{% endif %}"
)
# As DeepSeek-R1's: the prompt ends inside of the reasoning, and there is no switch.
OPENED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}\x02{{ m.content.split('</think>')[-1] }}"
    "\x03{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<think>\n\x02{% endif %}"
)


def reasoning_model(*answers: str, template: str = SWITCHED) -> tuple[Model, ScriptEngine]:
    """A model that gives these answers, and its engine, which has the prompts."""
    engine = ScriptEngine(answers)
    return fake_model(engine, template=template), engine
