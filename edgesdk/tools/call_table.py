"""The call syntaxes that are known by name: one record for each.

Most templates show how they write calls, and then their own marks count
(`edgesdk.tools.syntax_learning`). These records are for templates that only list tools, for models
that write otherwise than their template shows, and for answers of which no template is known.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgesdk.tools.argument_notations import PythonKeywords
from edgesdk.tools.bare_object import BareObject
from edgesdk.tools.call_syntax import CallSyntax
from edgesdk.tools.tagged_values import TaggedValues

_KEYS = ('{"name": "', '", "arguments": ', "}")

# Hermes function calling (Nous Research), which Qwen took over.
HERMES = CallSyntax((f"<tool_call>\n{_KEYS[0]}", _KEYS[1], "}\n</tool_call>"), between="\n")
# SmolLM2 was trained on one list of all calls.
SMOLLM = CallSyntax(_KEYS, opening="<tool_call>[", between=", ", closing="]</tool_call>")
# Qwen3-Coder, Qwen3.5, Nemotron 3 Nano.
QWEN_CODER = CallSyntax(
    ("<tool_call>\n<function=", ">\n", "</function>\n</tool_call>"),
    between="\n",
    notation=TaggedValues("<parameter=", ">\n", "\n</parameter>\n"),
)
# The same, where a model leaves out the mark around it.
FUNCTION = CallSyntax(
    ("<function=", ">\n", "</function>"), between="\n", notation=QWEN_CODER.notation
)
# Functionary, and Llama 3's own prompt.
FUNCTION_JSON = CallSyntax(("<function=", ">", "</function>"), between="")
GLM = CallSyntax(
    ("<tool_call>", "\n", "</tool_call>"),
    between="\n",
    notation=TaggedValues("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
)
# Mistral since 2025.
MISTRAL_NAMED = CallSyntax(("[TOOL_CALLS]", "[ARGS]", ""), between="")
MISTRAL_NAMED_IDS = CallSyntax(
    ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", ""), ("name", "id", "arguments"), between=""
)
LFM2 = CallSyntax(
    ("", "(", ")"),
    opening="<|tool_call_start|>[",
    between=", ",
    closing="]<|tool_call_end|>",
    notation=PythonKeywords('"'),
)
LLAMA4 = CallSyntax(
    ("", "(", ")"),
    opening="<|python_start|>[",
    between=", ",
    closing="]<|python_end|>",
    notation=PythonKeywords('"'),
)
GRANITE3 = CallSyntax(_KEYS, opening="<|tool_call|>[", between=", ", closing="]")
GEMMA4 = CallSyntax(("<|tool_call>call:", "", "<tool_call|>"), between="", notation=BareObject())
KIMI_K2 = CallSyntax(
    ("<|tool_call_begin|>functions.", ":", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    ("name", "index", "arguments"),
    opening="<|tool_calls_section_begin|>",
    between="",
    closing="<|tool_calls_section_end|>",
)
DEEPSEEK_V3 = CallSyntax(
    ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    opening="<｜tool▁calls▁begin｜>",
    between="",
    closing="<｜tool▁calls▁end｜>",
)
DEEPSEEK_R1 = CallSyntax(
    ("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n", "\n```<｜tool▁call▁end｜>"),
    opening="<｜tool▁calls▁begin｜>",
    between="\n",
    closing="<｜tool▁calls▁end｜>",
)
# gpt-oss names the recipient after the channel, where its template has it before.
HARMONY = CallSyntax(
    ("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", "<|call|>")
)
MINICPM = CallSyntax(
    ('<function name="', '">', "</function>"),
    between="\n",
    notation=TaggedValues('<param name="', '">', "</param>"),
)


@dataclass(frozen=True)
class ListingTemplate:
    """A template that lists tools and does not write calls.

    Attributes:
        mark: stands in its source.
        syntax: how its model writes calls, as its makers say.
    """

    mark: str
    syntax: CallSyntax


LISTING_TEMPLATES = (
    ListingTemplate("List of tools: ", LFM2),
    ListingTemplate("<|tool_call_argument_begin|>", KIMI_K2),
    ListingTemplate("respond only with <|tool_call|>", GRANITE3),
)
# Those whose marks no other text has, tried in this order where an answer has another syntax than
# its template's.
WELL_KNOWN = (
    *(HERMES, SMOLLM, QWEN_CODER, FUNCTION, FUNCTION_JSON, GLM, MISTRAL_NAMED_IDS, MISTRAL_NAMED),
    *(LFM2, LLAMA4, GEMMA4, KIMI_K2, DEEPSEEK_R1, DEEPSEEK_V3, HARMONY, MINICPM),
)
# Without a mark: a call only where the whole answer is calls. The first two are Mistral's, whose
# marks some tokenizers leave without text.
UNMARKED = (
    CallSyntax(("", "", ""), between=""),
    CallSyntax(("", "[ARGS]", ""), between=""),
    CallSyntax(("", "(", ")"), opening="[", between=", ", closing="]", notation=LFM2.notation),
)
