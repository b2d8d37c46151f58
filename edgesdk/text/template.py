"""Render messages with a chat template, as the text that the model was trained on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import TemplateSyntaxError, meta, nodes

from edgesdk.errors import RequestError, TemplateError
from edgesdk.text.sandbox import TemplateSandbox
from edgesdk.text.template_text import TemplateText, from_assistant, from_template

MAX_SOURCE_CHARACTERS = 2**20
_HINT = "The template belongs to the model: try messages of other roles, or another model."

Message = Mapping[str, Any]

# What templates call the reasoning of an assistant's message.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# What the model itself has written of it.
_ASSISTANT_TEXTS = frozenset({"content", *REASONING_KEYS})
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class ChatTemplate:
    """A compiled chat template. May be used by several threads.

    Args:
        source: Jinja text, written for transformers' `apply_chat_template`. Its hash is `sha256`.

    Raises:
        TemplateError: it is not valid Jinja, or is larger than a million characters.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise TemplateError(f"The chat template has {len(source):,} characters.")
        self.source = source
        self.sha256 = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
        self._sandbox = TemplateSandbox()
        self._sandbox.start()
        try:
            self._template = self._sandbox.from_string(source)
        except TemplateSyntaxError as error:
            raise TemplateError(
                f"The chat template is not valid Jinja: line {error.lineno}: {error.message}."
            ) from None
        except Exception as error:
            # Deep nesting, or a constant expression that fails while it is folded.
            raise TemplateError(f"The chat template does not compile: {_reason(error)}") from None

    @cached_property
    def literals(self) -> str:
        """The texts that stand in the source, joined by zero characters."""
        constants = self._sandbox.parse(self.source).find_all(nodes.Const)
        return "\0".join(node.value for node in constants if isinstance(node.value, str))

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names that the source reads and does not make itself, as `enable_thinking`."""
        return frozenset(meta.find_undeclared_variables(self._sandbox.parse(self.source)))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        bos_token: str | None = None,
        eos_token: str | None = None,
        special_tokens: Mapping[str, str] = MappingProxyType({}),
        **extra: Any,
    ) -> TemplateText:
        """Write the conversation as text that knows which of it the template wrote.

        Args:
            messages: mappings with "role" and "content", of JSON values only.
            tools: JSON schemas of functions, for templates that know tools.
            add_generation_prompt: end with the header of the assistant's next answer.
            special_tokens: the model's other special tokens by their names, such as "pad_token".
            extra: further variables that some templates read, such as `enable_thinking`.

        Raises:
            TemplateError: the template raised an error, tried to leave its sandbox, ran for too
                long or wrote too much.
            RequestError: a message holds something that is not a JSON value.
        """
        named = {"bos_token": bos_token, "eos_token": eos_token}
        tokens = {
            **special_tokens,
            **{name: token for name, token in named.items() if token is not None},
        }
        variables = {
            "messages": [_message(message, f"messages[{i}]") for i, message in enumerate(messages)],
            "tools": to_json_values(tools, "tools"),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **{name: from_template(token) for name, token in tokens.items()},
            **{name: to_json_values(value, name) for name, value in extra.items()},
        }
        self._sandbox.start()
        try:
            return TemplateText(self._template.render(variables))
        except Exception as error:
            # Whatever a stranger's code raises is the template's failure, not the program's.
            raise TemplateError(f"The chat template failed: {_reason(error)}", hint=_HINT) from None


def _message(message: Message, where: str) -> dict[str, Any]:
    """Copy a message for a template, with the origins of its texts.

    As in transformers, a key without a value is left out: many templates would write "None".
    """
    values = {str(key): value for key, value in message.items() if value is not None}
    copied: dict[str, Any] = to_json_values(values, where)
    role = copied.get("role")
    if role == "assistant":
        if reasoning := next(filter(None, map(copied.get, REASONING_KEYS)), None):
            copied = dict.fromkeys(REASONING_KEYS, reasoning) | copied
        for key in _ASSISTANT_TEXTS & copied.keys():
            copied[key] = _from_assistant(copied[key])
    # Some templates make a token of it: '<|' + message.role + '|>'.
    if type(role) is str and _ROLE.fullmatch(role):
        copied["role"] = from_template(role)
    return copied


def _from_assistant(content: Any) -> Any:
    if type(content) is str:
        return from_assistant(content)
    if isinstance(content, list):
        return [_from_assistant(part) for part in content]
    if isinstance(content, dict) and type(content.get("text")) is str:
        return {**content, "text": from_assistant(content["text"])}
    return content


def to_json_values(value: Any, where: str) -> Any:
    """Copy `value` in plain JSON types, so that a template reaches no method of the caller's.

    Raises:
        RequestError: some part of it is not a JSON value.
    """
    if value is None or type(value) in (str, int, float, bool, TemplateText):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {str(key): to_json_values(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_values(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise RequestError(
        f"{where} is a {type(value).__name__}; a chat template takes JSON values only."
    )


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if not isinstance(error, JinjaError):
        text = f"{type(error).__name__}: {text}"
    return text if text.endswith((".", "!", "?")) else f"{text}."
