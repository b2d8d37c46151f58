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
from edgesdk.tools.dialect import dialect_of


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
        self._check_template(runtime)
        specs = None if self.toolset is None else self.toolset.specs
        ids = runtime.encoder.chat(self.messages, tools=specs)
        with blamed_on(FORMAT):
            constraint, _ = runtime.held_to(self.form)
        return Prepared(ids, constraint)

    def _check_template(self, runtime: Runtime) -> None:
        if self.toolset is None and not self.tools_used:
            return
        dialect = dialect_of(runtime.encoder.template)
        if self.toolset is not None and not dialect.tools:
            raise _without("tools", "tools")
        if self.tools_used and not (dialect.calls and dialect.results):
            raise _without("calls of tools and their results", "messages")


def _without(what: str, param: str) -> ApiError:
    return ApiError(
        400,
        f"This model's chat template has no place for {what}. Use a model that was trained to call"
        " tools.",
        param=param,
        code="unsupported_parameter",
    )
