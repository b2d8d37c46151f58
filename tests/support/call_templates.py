"""Chat templates that write tools, calls and results like those of model families do.

They are stand-ins, written for these tests: the templates of the models themselves come under
licences of their own. What is between the marks of a call is the families' own, as documented in
the model cards of their models, such as Qwen2.5, Hermes 2 Pro, Llama 3.1 and Mistral Nemo.
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

# Calls as Python writes them, with no mark around them.
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

_NAME, _JSON = "{{ c.function.name }}", "{{ c.function.arguments | tojson }}"
_EACH = "{% for k, v in c.function.arguments | items %}"
_VALUE = "{{ v if v is string else v | tojson }}"


def _answering(call: str, *, opening: str = "", between: str = "", closing: str = "") -> str:
    """A template whose calls are written so."""
    asked = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    return (
        "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
        "{{ m.content }}"
        f"{{% if m.tool_calls %}}{opening}{{% for c in m.tool_calls %}}{call}"
        f"{{% if not loop.last %}}{between}{{% endif %}}{{% endfor %}}{closing}{{% endif %}}"
        f"<|im_end|>\n{{% else %}}{asked}{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


# As DeepSeek-V3.1: it lists no tools, and joins the arguments of calls as texts.
UNLISTED = (
    "{% for m in messages %}{% if m.role == 'tool' %}<result>{{ m.content }}</result>"
    "{% else %}<｜{{ m.role }}｜>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<｜tool▁calls▁begin｜>' if loop.first }}"
    "{{ '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' + c.function.arguments"
    " + '<｜tool▁call▁end｜>' }}{{ '<｜tool▁calls▁end｜>' if loop.last }}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<｜assistant｜>{% endif %}"
)

# One template for each syntax that models are known to write, and what it writes of a call of
# `weather` with a text, a list, a truth value and nothing.
SYNTAXES = {
    "a key is the name": (
        _answering(
            '{"' + _NAME + '": ' + _JSON + "}",
            opening="<|tools_prefix|>[",
            between=", ",
            closing="]<|tools_suffix|>",
        ),
        '<|tools_prefix|>[{"weather": ARGUMENTS}]<|tools_suffix|>',
    ),
    "a tag in capitals": (
        _answering(
            '{"name": "' + _NAME + '", "arguments": ' + _JSON + "}",
            opening="<TOOLCALL>[",
            between=", ",
            closing="]</TOOLCALL>",
        ),
        '<TOOLCALL>[{"name": "weather", "arguments": ARGUMENTS}]</TOOLCALL>',
    ),
    "numbered calls": (
        _answering(
            '    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "'
            + _NAME
            + '", "parameters": '
            + _JSON
            + "}",
            opening="<|START_ACTION|>[\n",
            between=",\n",
            closing="{{ '\n' }}]<|END_ACTION|>",
        ),
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "weather", "parameters": '
        "ARGUMENTS}\n]<|END_ACTION|>",
    ),
    "a section with numbered names": (
        _answering(
            "<|tool_call_begin|>functions."
            + _NAME
            + ":{{ loop.index0 }}<|tool_call_argument_begin|>"
            + _JSON
            + "<|tool_call_end|>",
            opening="<|tool_calls_section_begin|>",
            closing="<|tool_calls_section_end|>",
        ),
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        "<|tool_call_argument_begin|>ARGUMENTS<|tool_call_end|><|tool_calls_section_end|>",
    ),
    "the name and a fence": (
        _answering(
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>"
            + _NAME
            + "\n```json\n"
            + _JSON
            + "\n```<｜tool▁call▁end｜>",
            opening="<｜tool▁calls▁begin｜>",
            between="\n",
            closing="<｜tool▁calls▁end｜>",
        ),
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\nARGUMENTS\n"
        "```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "ids before arguments": (
        _answering("[TOOL_CALLS]" + _NAME + "[CALL_ID]{{ c.id }}[ARGS]" + _JSON),
        "[TOOL_CALLS]weather[CALL_ID]call00000[ARGS]ARGUMENTS",
    ),
    "a recipient": (
        _answering(" to=functions." + _NAME + "<|channel|>commentary json<|message|>" + _JSON),
        " to=functions.weather<|channel|>commentary json<|message|>ARGUMENTS",
    ),
    "lines of JSON": (
        _answering(
            '{\n        "tool_name": "' + _NAME + '",\n        "parameters": '
            "{{ c.function.arguments | tojson(indent=4) | indent(8) }}\n    }",
            opening="Action:\n```json\n[\n    ",
            between=",\n    ",
            closing="\n]```",
        ),
        None,
    ),
    "parameters": (
        _answering(
            "<tool_call>\n<function="
            + _NAME
            + ">\n"
            + _EACH
            + "<parameter={{ k }}>\n"
            + _VALUE
            + "\n</parameter>\n{% endfor %}</function>\n</tool_call>",
            between="\n",
        ),
        "<tool_call>\n<function=weather>\n<parameter=city>\nLima\n</parameter>\n<parameter=days>\n"
        "[1, 2]\n</parameter>\n<parameter=wind>\ntrue\n</parameter>\n<parameter=at>\nnull\n"
        "</parameter>\n</function>\n</tool_call>",
    ),
    "keys and values": (
        _answering(
            "<tool_call>"
            + _NAME
            + _EACH
            + "<arg_key>{{ k }}</arg_key><arg_value>"
            + _VALUE
            + "</arg_value>{% endfor %}</tool_call>"
        ),
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Lima</arg_value><arg_key>days</arg_key>"
        "<arg_value>[1, 2]</arg_value><arg_key>wind</arg_key><arg_value>true</arg_value>"
        "<arg_key>at</arg_key><arg_value>null</arg_value></tool_call>",
    ),
    "names as attributes": (
        _answering(
            '<function name="'
            + _NAME
            + '">'
            + _EACH
            + '<param name="{{ k }}">'
            + _VALUE
            + "</param>{% endfor %}</function>",
            between="\n",
        ),
        '<function name="weather"><param name="city">Lima</param><param name="days">[1, 2]</param>'
        '<param name="wind">true</param><param name="at">null</param></function>',
    ),
    "types as attributes": (
        _answering(
            '<｜DSML｜invoke name="'
            + _NAME
            + '">\n'
            + _EACH
            + '<｜DSML｜parameter name="{{ k }}" string='
            + "\"{{ 'true' if v is string else 'false' }}\">"
            + _VALUE
            + "</｜DSML｜parameter>\n{% endfor %}</｜DSML｜invoke>\n",
            opening="<｜DSML｜tool_calls>\n",
            closing="</｜DSML｜tool_calls>",
        ),
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n'
        '<｜DSML｜parameter name="city" string="true">Lima</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">[1, 2]</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="wind" string="false">true</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="at" string="false">null</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
    ),
    "Python": (
        _answering(
            _NAME + "(" + _EACH + '{{ k }}={{ "\'" ~ v ~ "\'" if v is string else v }}'
            "{% if not loop.last %}, {% endif %}{% endfor %})",
            opening="<|tool_call_start|>[",
            between=", ",
            closing="]<|tool_call_end|>",
        ),
        "<|tool_call_start|>[weather(city='Lima', days=[1, 2], wind=True, at=None)]"
        "<|tool_call_end|>",
    ),
    "bare keys": (
        _answering(
            "<|tool_call>call:"
            + _NAME
            + "{{ '{' }}"
            + _EACH
            + "{{ k }}:{{ '<|\"|>' ~ v ~ '<|\"|>' if v is string else v | tojson }}"
            "{% if not loop.last %},{% endif %}{% endfor %}}<tool_call|>"
        ),
        '<|tool_call>call:weather{city:<|"|>Lima<|"|>,days:[1,2],wind:true,at:null}<tool_call|>',
    ),
    "a list that no call is shown in": (
        "{% if tools %}<|im_start|>system\nList of tools: {{ tools | tojson }}<|im_end|>\n"
        "{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        '<|tool_call_start|>[weather(city="Lima", days=[1, 2], wind=True, at=None)]'
        "<|tool_call_end|>",
    ),
}
SYNTAXES["reasoning in the prompt"] = (
    SYNTAXES["parameters"][0]
    .replace("assistant\n{{ m.content }}", "assistant\n<think>\n\n</think>\n\n{{ m.content }}")
    .replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"),
    SYNTAXES["parameters"][1],
)
