"""Encode prompts: from messages to the token ids that a model is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

from edgesdk.bundle.manifest import TokenizerEntry
from edgesdk.errors import EmptyPrompt, RequestError, TemplateError
from edgesdk.text.control_tokens import ControlTokens, control_tokens
from edgesdk.text.reasoning_format import ReasoningFormat, Variables, detect_reasoning
from edgesdk.text.template import ChatTemplate, Message
from edgesdk.text.template_text import TemplateText, concat, from_assistant, from_template
from edgesdk.text.tokenizer import Tokenizer

Prompt: TypeAlias = str | Sequence[Message]


@dataclass(frozen=True)
class PromptEncoder:
    """The text side of one model.

    Attributes:
        template: None for a model that was not trained to chat.
        template_problem: why there is none, where that is known.
        bos_token: text of the BOS token, for the template; likewise `eos_token`.
        special_tokens: the texts of others by the names that templates know, as "pad_token".
        tool_template: takes the template's place where there are tools; None for none.
        parse_special: what users, tools and documents say may have control tokens too. Unsafe:
            who writes `<|im_end|><|im_start|>system` then speaks for the system.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    bos_token: str | None
    eos_token: str | None
    template_problem: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    tool_template: ChatTemplate | None = None
    parse_special: bool = False

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        begun: str = "",
        variables: Variables = MappingProxyType({}),
    ) -> list[int]:
        """Encode a conversation that the assistant is to continue; `tools` as in `render`.

        Where the model wants a BOS token and the template writes none, one is put in front, as
        llama.cpp does.

        Args:
            begun: how the assistant's answer begins; reasoning that the template opens before it
                is closed.
            variables: further ones of the template.

        Raises:
            TemplateError: there is no template, or it failed.
            InvalidText: a message has a lone surrogate.
        """
        template = self.template_for(tools)
        if template is None:
            why = self.template_problem or "it has no chat template"
            raise TemplateError(
                f"This model cannot chat: {why}.",
                hint="Use model.complete(text), or an instruction-tuned model.",
            )
        text = template.render(
            messages,
            tools=tools,
            bos_token=self.bos_token,
            eos_token=self.eos_token,
            special_tokens=self.special_tokens,
            **variables,
        )
        if begun:
            marks = self.reasoning_for(tools).marks
            closed = marks is not None and marks.is_open(text.plain)
            closing = f"{marks.closing}\n\n" if marks is not None and closed else ""
            text = concat((text, from_template(closing), from_assistant(begun)))
        return self._encode(text)

    def template_for(self, tools: Sequence[Mapping[str, Any]] | None) -> ChatTemplate | None:
        """The template of a prompt with these tools: with some, it may be one of its own."""
        return self.tool_template if tools and self.tool_template is not None else self.template

    def reasoning_for(self, tools: Sequence[Any] | None) -> ReasoningFormat:
        """How the model reasons in answers to a prompt with these tools."""
        own = tools and self.tool_template is not None
        return self._reasoning_with_tools if own else self._reasoning

    @cached_property
    def _reasoning(self) -> ReasoningFormat:
        return detect_reasoning(self.template)

    @cached_property
    def _reasoning_with_tools(self) -> ReasoningFormat:
        return detect_reasoning(self.tool_template)

    def mark_ids(self, text: str) -> list[int]:
        """Encode a text as the template writes it in the midst of others."""
        return self._ids(from_template(text)) if text else []

    @cached_property
    def control_tokens(self) -> ControlTokens:
        """The tokens that only the templates may write."""
        templates = (self.template, self.tool_template)
        literals = "\0".join(template.literals for template in templates if template is not None)
        tokenizer = self.tokenizer
        return control_tokens(tokenizer.added_tokens, tokenizer.special_token_ids, literals)

    def _encode(self, text: TemplateText) -> list[int]:
        ids = self._ids(text)
        start = self.tokenizer.encode("", add_bos=True)
        return ids if ids[: len(start)] == start else start + ids

    def _ids(self, text: TemplateText) -> list[int]:
        if self.parse_special:
            return self.tokenizer.encode(text.plain)
        control = self.control_tokens
        if control.is_clean(text):
            ids = self.tokenizer.encode(text.plain)
            if control.agrees(text, ids):
                return ids
        return self.tokenizer.encode_pieces(control.split(text), control.ids)

    def plain(self, text: str) -> list[int]:
        """Encode a text that the model is to go on with.

        Raises:
            EmptyPrompt: there is no text.
            InvalidText: it has a lone surrogate.
        """
        if not text:
            raise EmptyPrompt("The text is empty.", hint="Give the model something to go on with.")
        return self.tokenizer.encode(text, add_bos=True)


def as_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """Make a list of messages of a prompt; a text is one message of the user.

    Raises:
        EmptyPrompt: there is no message, or the last one is blank.
        RequestError: something is not a message.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if not messages:
        raise EmptyPrompt("There are no messages.", hint="Ask something.")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(
                f"messages[{index}] is not a message.",
                hint='A message is {"role": "user", "content": "..."}.',
            )
        content = message.get("content")
        if content is None and not message.get("tool_calls"):
            raise RequestError(f"messages[{index}] has no content.", hint='Give it a "content".')
    last = messages[-1].get("content")
    # A tool may well give nothing, and calls need no words.
    speaks = messages[-1]["role"] != "tool" and not messages[-1].get("tool_calls")
    if speaks and isinstance(last, str) and not last.strip():
        raise EmptyPrompt("The prompt is empty.", hint="Ask something.")
    return [dict(message) for message in messages]


# What follows may change the last tokens of what is shared; these begin with unlike tokens.
_CONTINUATIONS = ("A", "b", "\n\n1", " the")


def shared_prefix(encoder: PromptEncoder, messages: Sequence[dict[str, Any]]) -> list[int]:
    """Encode what all prompts have in common that start with `messages`.

    A last message of the user may go on in its own text; after any other, a message of the user
    follows.

    Raises:
        TemplateError, InvalidText: see `PromptEncoder.chat`.
    """
    prompts = [encoder.chat(_with_continuation(messages, text)) for text in _CONTINUATIONS]
    shortest = min(prompts, key=len)
    for place, token in enumerate(shortest):
        if any(prompt[place] != token for prompt in prompts):
            return shortest[:place]
    return shortest


def _with_continuation(messages: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    last = messages[-1]
    if last["role"] == "user" and isinstance(last["content"], str):
        return [*messages[:-1], {**last, "content": last["content"] + text}]
    return [*messages, {"role": "user", "content": text}]


def encoder_of(
    tokenizer: Tokenizer, entry: TokenizerEntry, template: str | None, tool_template: str | None
) -> PromptEncoder:
    """The text side of a model that a manifest's entry describes; templates are Jinja sources."""
    return PromptEncoder(
        tokenizer,
        None if template is None else ChatTemplate(template),
        entry.bos_token,
        entry.eos_token,
        entry.template_problem,
        entry.special_tokens,
        None if tool_template is None else ChatTemplate(tool_template),
    )
