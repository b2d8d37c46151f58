"""Chat templates against transformers' own rendering."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from edgesdk.errors import TemplateError
from edgesdk.text.template import ChatTemplate

pytestmark = pytest.mark.integration

gguf = pytest.importorskip("gguf")
reference = pytest.importorskip("transformers.utils.chat_template_utils")

_LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""  # noqa: E501
_GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
_QWEN3 = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""  # noqa: E501
_MACROS = """{%- macro turn(role, text='') -%}
[{{ role | upper }}] {{ caller() if caller else text }}
{%- endmacro %}
{%- for message in messages if message.role != 'system' -%}
  {%- call turn(message.role) -%}
    {% generation %}{{ message.content ~ ' #' ~ loop.index }}{% endgeneration %}
  {%- endcall %}
{{ ' | ' if not loop.last }}
{%- endfor %} {{ messages | map(attribute='role') | join(',') }} {{ dict(a=1) | tojson }}
"""

TEMPLATES = {"llama3": _LLAMA3, "gemma": _GEMMA, "qwen3": _QWEN3, "macros": _MACROS}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hi <there> & 'you' 中文 😀"}],
    "two": [
        {"role": "user", "content": "  Hi\n"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"},
        {"role": "user", "content": "Again"},
    ],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ],
}
TOOLS = [{"type": "function", "function": {"name": "sum", "parameters": {"ü": [1, None, True]}}}]


def _both(source: str, messages: list[dict[str, Any]], **variables: Any) -> tuple[str, str]:
    generation = {"add_generation_prompt": True, **variables}
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    [expected], _ = reference.render_jinja_template(
        [messages], chat_template=source, **generation, **tokens
    )
    return ChatTemplate(source).render(messages, **generation, **tokens), expected


@pytest.mark.parametrize("source", [_LLAMA3, _GEMMA, _QWEN3, _MACROS])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize(
    "variables", [{}, {"add_generation_prompt": False}, {"tools": TOOLS, "enable_thinking": False}]
)
def test_templates_render_as_transformers_does(
    source: str, conversation: str, variables: dict[str, Any]
) -> None:
    messages = CONVERSATIONS[conversation]
    if source == _GEMMA and conversation == "system":
        with pytest.raises(TemplateError, match="System role not supported"):
            ChatTemplate(source).render(messages)
        return

    mine, expected = _both(source, messages, **variables)

    assert mine == expected


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("variables", [{}, {"tools": TOOLS}])
@pytest.mark.parametrize("model", ["smollm2_gguf", "qwen_coder_gguf"])
def test_templates_of_real_models_render_as_transformers_does(
    model: str, conversation: str, variables: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    mine, expected = _both(
        _template(request.getfixturevalue(model)), CONVERSATIONS[conversation], **variables
    )

    assert mine == expected
    assert "<|im_start|>user\n" in mine


def test_a_tool_conversation_of_qwen_renders_as_transformers_does(qwen_coder_gguf: Path) -> None:
    call = {"type": "function", "function": {"name": "sum", "arguments": {"a": [1, 2]}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Add"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "sum", "content": "3"},
        {"role": "tool", "name": "sum", "content": "4"},
    ]

    mine, expected = _both(_template(qwen_coder_gguf), messages, tools=TOOLS)

    assert mine == expected
    assert '"arguments": {"a": [1, 2]}' in mine


@cache
def _template(path: Path) -> str:
    return str(gguf.GGUFReader(path).fields["tokenizer.chat_template"].contents())
