"""One request: what is asked, whoever answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from time import perf_counter
from typing import Any, TypeAlias

from edgesdk.errors import InvalidOption
from edgesdk.generation.constraint import Constraint
from edgesdk.generation.repetition import RepetitionFinder
from edgesdk.options import Options, options_from
from edgesdk.structured.output_format import OUTPUT_FORMATS, OutputFormat, format_from_kwargs
from edgesdk.system.cancellation import CancellationToken
from edgesdk.text.shown_tokens import ShownTokens
from edgesdk.text.tokenizer import Tokenizer
from edgesdk.tools.call_finder import CallFinder
from edgesdk.tools.call_messages import Message, used_ids
from edgesdk.tools.calls import ToolCalls, has_begun_calls, is_call_mark, parse_calls
from edgesdk.tools.cut_calls import distinct_calls, whole_calls
from edgesdk.tools.tool_format import ToolFormat
from edgesdk.tools.tool_set import ToolSet, ToolSpec, make_tool_set

Encode: TypeAlias = Callable[[Sequence[Message], Sequence[ToolSpec]], list[int]]


@dataclass(frozen=True)
class Request:
    """What is asked. It is made once, at the edge; the device, the cloud and the server read it.

    Attributes:
        messages: in the form of OpenAI's API, the new ones last. Some may have pictures, sounds or
            files. Empty where a plain text is to be continued.
        options: how the answer is decoded. Their deadline counts from `started`.
        encode: makes token ids of messages and tool specs, for the model on the device.
        output_format: what the answer must look like; None for any text.
        tools: those that the answer may call; None for none. A request has tools or an output
            format, not both.
        cancellation: ends the answer, whoever gives it.
        started: `time.perf_counter()` when the request came.
        logprobs: each token comes with its log-probability.
        top_logprobs: each token comes with so many of the likeliest tokens.
    """

    messages: list[Message]
    options: Options
    encode: Encode
    output_format: OutputFormat | None = None
    tools: ToolSet | None = None
    cancellation: CancellationToken = field(default_factory=CancellationToken)
    started: float = field(default_factory=perf_counter)
    logprobs: bool = False
    top_logprobs: int = 0

    @cached_property
    def tokens(self) -> list[int]:
        """Ids of the prompt, with its tools. They are computed once.

        Raises:
            TemplateError, InvalidText, EmptyPrompt, RequestError: the prompt cannot be encoded.
        """
        return self.encode(self.messages, self.specs)

    @property
    def question(self) -> str:
        """Text of the user's latest message; "" where there is none."""
        latest = next((m for m in reversed(self.messages) if m["role"] == "user"), None)
        content = None if latest is None else latest.get("content")
        if not isinstance(content, list):
            return content or ""
        return "\n".join(part["text"] for part in content if part.get("type") == "text")

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """The tools as the model sees them."""
        return () if self.tools is None else self.tools.specs

    @property
    def is_plain(self) -> bool:
        """Whether the answer may be any text, and nothing but a text."""
        return self.output_format is None and self.tools is None

    @property
    def answer_format(self) -> OutputFormat | None:
        """The format of the device's answer: the output format, or that of calls."""
        return self.output_format if self.tools is None else self.tools.call_format

    @property
    def is_call(self) -> Callable[[str], bool] | None:
        """Whether an answer so far may hold calls; None where it may make none."""
        if self.tools is None:
            return None
        return partial(has_begun_calls, syntax=self.tools.syntax)

    def call_finder(self) -> CallFinder | None:
        """What holds the calls of one answer back; None where it may make none."""
        if self.tools is None:
            return None
        return CallFinder(self.tools.syntax, [spec["function"]["name"] for spec in self.specs])

    def shown(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer of the answer, in whose text the marks of calls are seen."""
        if self.tools is None:
            return tokenizer
        return ShownTokens(tokenizer, partial(is_call_mark, syntax=self.tools.syntax))

    def repetition_finder(
        self, tokenizer: Tokenizer, constraint: Constraint | None
    ) -> RepetitionFinder | None:
        """What ends an answer that goes in a cycle; an answer with a format may repeat itself."""
        if not self.options.stop_on_repetition or constraint is not None:
            return None
        token_bytes = self.shown(tokenizer).token_bytes
        question = self.question
        if not self.messages:
            # A text is continued; what it repeats may go on.
            question = b"".join(map(token_bytes, self.tokens)).decode("utf-8", "replace")
        return RepetitionFinder(token_bytes, question=question, is_call=self.is_call)

    def read(self, text: str) -> Any:
        """The value of a whole answer of the device: its calls where there are tools."""
        if self.tools is not None:
            syntax = self.tools.syntax
            calls = parse_calls(text, self.specs, syntax)
            if self.tools.must_call:
                # An answer that repeats a call is ended in it.
                whole = distinct_calls(whole_calls(text, self.specs, syntax))
                calls = ToolCalls(whole, calls.words) if whole else calls
            return self.tools.check(calls, used_ids(self.messages))
        return None if self.output_format is None else self.output_format.read(text)

    def replaced(self, **changes: Any) -> Request:
        """This request with other values; its tokens are kept where the prompt stays the same."""
        other = replace(self, **changes)
        if "tokens" in self.__dict__ and not changes.keys() & {"messages", "tools", "encode"}:
            other.__dict__["tokens"] = self.tokens
        return other


def request_from(
    messages: list[Message],
    kwargs: Mapping[str, object],
    *,
    encode: Encode,
    tool_format: Callable[[], ToolFormat],
    tokenizer: Tokenizer,
    sampling: Mapping[str, float] | None = None,
    started: float | None = None,
) -> Request:
    """The request that messages and keyword arguments make; see `RequestKwargs`.

    Args:
        tool_format: of the model's chat template; asked for only where there are tools.
        sampling: options that hold where `kwargs` say nothing else, for free text: a value or a
            call is what the model holds for the likeliest.
        started: `time.perf_counter()` when the request came; now by default.

    Raises:
        InvalidOption: an option is unknown or out of its range, a format cannot be enforced, a tool
            is none, or two of them exclude each other.
        MissingExtra: a format is asked for, or a call is required, and llguidance is not installed.
    """
    others = (*OUTPUT_FORMATS, "tools", "tool_choice")
    given = {key: value for key, value in kwargs.items() if key not in others}
    is_plain = all(kwargs.get(key) is None for key in (*OUTPUT_FORMATS, "tools"))
    options = options_from({**(sampling or {}), **given} if is_plain else given)
    output_format = format_from_kwargs(kwargs, options)
    tools, choice = kwargs.get("tools"), kwargs.get("tool_choice", "auto")
    tool_set = None
    if tools is None:
        if "tool_choice" in kwargs:
            raise InvalidOption("'tool_choice' needs 'tools'.", hint="Give both, or neither.")
    elif output_format is not None:
        raise InvalidOption(
            "'tools' and an output format exclude each other.",
            hint="Set the format once the tools have run.",
        )
    elif not isinstance(choice, str):
        raise InvalidOption(f"'tool_choice' is {choice!r}, not a text.")
    else:
        tool_set = make_tool_set(tools, tool_format(), tokenizer, choice=choice)
    return Request(
        messages,
        options,
        encode,
        output_format,
        tool_set,
        started=perf_counter() if started is None else started,
    )
