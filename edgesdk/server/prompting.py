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
from edgesdk.tools.constraint import call_structure, loosened
from edgesdk.tools.dialect import Dialect


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
        toolset = self.toolset
        if toolset is None and not self.tools_used:
            ids = runtime.encoder.chat(self.messages)
        elif not runtime.dialect.tools:
            raise ApiError(
                400,
                "This model's chat template knows no tools. Use a model that was trained to call"
                " them.",
                param="tools" if toolset else "messages",
                code="unsupported_parameter",
            )
        else:
            ids = runtime.encode(self.messages, () if toolset is None else toolset.specs)
        if toolset is None:
            with blamed_on(FORMAT):
                return Prepared(ids, runtime.held_to(self.form)[0])
        with blamed_on("tools"):
            form = call_form(toolset, runtime.dialect, runtime.encoder.tokenizer)
            return Prepared(ids, runtime.held_to(form)[0])


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
