"""A chat request's prompt, for the model that answers it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgesdk.runtime import Runtime
from edgesdk.server.failures import ApiError
from edgesdk.server.service import Prepared
from edgesdk.server.structure import FORMAT, blamed_on
from edgesdk.server.tooling import Toolset
from edgesdk.structure.asking import Structure
from edgesdk.text.base import Tokenizer
from edgesdk.tools.calls import ToolCall
from edgesdk.tools.constraint import call_structure, loosened
from edgesdk.tools.dialect import Dialect, dialect_of
from edgesdk.tools.syntax import CallSyntax


@dataclass(frozen=True)
class ChatPrompt:
    """What a model is told, and what its answer is held to.

    Attributes:
        messages: as chat templates take them.
        toolset: None where no tool may be called.
        form: of the answer; None for any text.
        tools_used: whether `messages` has calls, or results of calls.
    """

    messages: list[dict[str, Any]]
    toolset: Toolset | None
    form: Structure | None
    tools_used: bool

    def prepared(self, runtime: Runtime) -> Prepared:
        """The prompt for one model.

        Raises:
            ApiError: 400; its chat template knows no tools, or no answer has the form.
            TemplateError, InvalidText: see `PromptEncoder.chat`.
        """
        encoder, toolset = runtime.encoder, self.toolset
        if toolset is None and not self.tools_used:
            ids = encoder.chat(self.messages)
            with blamed_on(FORMAT):
                constraint, _ = runtime.held_to(self.form)
            return Prepared(ids, constraint)
        dialect = dialect_of(encoder.template)
        if toolset is not None and not dialect.tools:
            raise _without("tools", "tools")
        specs = None if toolset is None else toolset.specs
        ids = encoder.chat(self._told(dialect), tools=specs)
        with blamed_on(FORMAT if toolset is None else "tools"):
            form = self.form if toolset is None else call_form(toolset, dialect, encoder.tokenizer)
            constraint, _ = runtime.held_to(form)
        return Prepared(ids, constraint)

    def _told(self, dialect: Dialect) -> list[dict[str, Any]]:
        """The messages, with calls as text where the template does not write several."""
        if self.tools_used and not (dialect.results and (dialect.calls or dialect.syntax)):
            raise _without("calls of tools and their results", "messages")
        if dialect.calls or dialect.syntax is None:
            return self.messages
        syntax = dialect.syntax
        return [_spelled(m, syntax) if m.get("tool_calls") else m for m in self.messages]


def call_form(toolset: Toolset, dialect: Dialect, tokenizer: Tokenizer) -> Structure | None:
    """What holds an answer to calls, or its calls to their schemas; None where nothing does.

    Raises:
        InvalidOption: a schema cannot be enforced.
        MissingExtra: llguidance is not installed.
    """
    specs = [spec for spec in toolset.specs if spec["function"]["name"] in toolset.checks]
    if toolset.must_call:
        return call_structure(
            dialect, specs, tokenizer, choice="required", parallel=toolset.parallel
        )
    if not toolset.strict:
        return None
    held = [
        spec if spec["function"]["name"] in toolset.strict else loosened([spec])[0]
        for spec in specs
    ]
    return call_structure(dialect, held, tokenizer, choice="auto", parallel=toolset.parallel)


def _spelled(message: dict[str, Any], syntax: CallSyntax) -> dict[str, Any]:
    calls = [
        ToolCall(call["function"]["name"], call["function"]["arguments"], id=call["id"])
        for call in message["tool_calls"]
    ]
    before = f"{message['content']}\n" if message["content"] else ""
    return {"role": "assistant", "content": before + syntax.write(calls)}


def _without(what: str, param: str) -> ApiError:
    return ApiError(
        400,
        f"This model's chat template has no place for {what}. Use a model that was trained to call"
        " tools.",
        param=param,
        code="unsupported_parameter",
    )
