"""Chat templates that write tools, calls and results like those of model families do.

They are stand-ins, written for these tests: the templates of the models themselves come under
licences of their own. What is between the marks of a call is the families' own, as documented in
the model cards of Qwen2.5, Hermes 2 Pro, Llama 3.1 and Mistral Nemo.
"""

from __future__ import annotations

_CHATML = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{% if not loop.first or m.content %}{{ '\n' }}{% endif %}"
    "CALL{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}RESULT"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

QWEN = (
    "{% if tools %}<|im_start|>system\n# Tools\n<tools>"
    "{% for t in tools %}{{ '\n' }}{{ t | tojson }}{% endfor %}\n</tools><|im_end|>\n{% endif %}"
) + _CHATML.replace(
    "CALL",
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments":'
    " {{ c.function.arguments | tojson }}}\n</tool_call>",
).replace(
    "RESULT",
    "<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n",
)

# It cannot do without tools, and writes arguments before names.
HERMES = (
    "<|im_start|>system\n<tools>{% for t in tools %}"
    '{"name": "{{ t.function.name }}", "description": "{{ t.function.name }}('
    "{% for name, part in t.function.parameters.properties | items %}{{ name }}: {{ part.type }}"
    "{% endfor %}) - {{ t.function.description + '' }}\"}{% endfor %}</tools><|im_end|>\n"
) + _CHATML.replace(
    "CALL",
    '<tool_call>\n{ "arguments": {{ c.function.arguments | tojson }},'
    ' "name": "{{ c.function.name }}"}\n</tool_call> ',
).replace(
    "RESULT",
    "{% if m.name is not defined %}{{ raise_exception('no name') }}{% endif %}<|im_start|>tool\n"
    '<tool_response>\n{"name": "{{ m.name }}", "content": {{ m.content | tojson }}}\n'
    "</tool_response> <|im_end|>\n",
)

# Tools go into the first message of the user; one call at a time.
LLAMA = (
    "{% for m in messages %}"
    "{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters":'
    " {{ m.tool_calls[0].function.arguments | tojson }}}<|eot_id|>"
    "{% elif m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ m.content | tojson }}<|eot_id|>"
    "{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if tools and loop.first %}{% for t in tools %}{{ t | tojson(indent=4) }}{{ '\n\n' }}"
    "{% endfor %}{% endif %}{{ m.content }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

# Nothing opens an answer; ids have nine characters.
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and m == (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}"
    "[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST]{{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}"
    '{{ (c.function | tojson)[:-1] }}, "id": "{{ c.id }}"}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]{{ eos_token }}"
    '{% elif m.role == \'tool\' %}[TOOL_RESULTS]{"content": {{ m.content }}, "call_id":'
    ' "{{ m.tool_call_id }}"}[/TOOL_RESULTS]'
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)

# Any role is written, and tools are unheard of.
SMOLLM = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# The name outside of the JSON, within one tag more.
XML = (
    QWEN.replace('{"name": "', "<function=")
    .replace('", "arguments": ', ">")
    .replace("}}}\n</tool_call>", "}}</function>\n</tool_call>")
)

# Mistral's since 2025.
NAMED = QWEN.replace(
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments":'
    " {{ c.function.arguments | tojson }}}\n</tool_call>",
    "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}",
)

# As Qwen3-Coder: values stand by themselves.
PARAMETERS = QWEN.replace(
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n',
    "<function={{ c.function.name }}>\n{% for k, v in c.function.arguments | items %}"
    "<parameter={{ k }}>\n{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}"
    "</function>\n",
)

# One list of all calls.
LISTED = (
    QWEN.replace(
        "{% for c in m.tool_calls or [] %}{% if not loop.first or m.content %}{{ '\n' }}"
        "{% endif %}",
        "{% if m.tool_calls %}<tool_calls>[{% endif %}{% for c in m.tool_calls or [] %}"
        "{{ ', ' if not loop.first }}",
    )
    .replace('<tool_call>\n{"name"', '{"name"')
    .replace(
        "}}}\n</tool_call>{% endfor %}",
        "}}}{% endfor %}{% if m.tool_calls %}]</tool_calls>{% endif %}",
    )
)

# Calls as Python writes them.
PYTHONIC = QWEN.replace(
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments":'
    " {{ c.function.arguments | tojson }}}\n</tool_call>",
    "[{{ c.function.name }}({% for k, v in c.function.arguments | items %}{{ k }}={{ v }}"
    "{% endfor %})]",
)

# As GLM-4.5.
KEYED = QWEN.replace(
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments":'
    " {{ c.function.arguments | tojson }}}\n</tool_call>",
    "<tool_call>{{ c.function.name }}\n{% for k, v in c.function.arguments | items %}"
    "<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n"
    "{% endfor %}</tool_call>",
)
