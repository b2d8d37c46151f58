"""One question to the hybrid client: its keyword arguments, and the request made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from edgesdk.errors import RejectedStructure
from edgesdk.hybrid.cloud.failover import OnBreak
from edgesdk.hybrid.decode_states import DecodeStates, NewStates
from edgesdk.hybrid.privacy.policy import Upload
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.options import Options, OptionsKwargs
from edgesdk.overflow import Overflow
from edgesdk.runtime import Runtime
from edgesdk.structured.output_format import OutputFormat, json_schema_of
from edgesdk.system.cancellation import CancellationToken
from edgesdk.tools.call_messages import used_ids
from edgesdk.tools.calls import ToolCall, ToolCalls
from edgesdk.tools.tool_set import RequestKwargs, check_tool_calls, parse_tool_kwargs, schema_errors

Messages: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True)
class RequestedFormat:
    """The form of an answer.

    Attributes:
        structure: holds the device's answer to it, and reads that.
        response_format: what the cloud is told, in the words of OpenAI's API; None where that has
            no word for the form, so that only the device can be held to it.
        read: from the text of a cloud's answer to its value; raises StructureError where it has
            not the form.
    """

    structure: OutputFormat
    response_format: dict[str, Any] | None
    read: Callable[[str], Any]


@dataclass(frozen=True)
class OfferedTools:
    """The tools that an answer may call.

    Attributes:
        specs: in the form of OpenAI's API.
        choice: OpenAI's `tool_choice`.
        check: gives calls ids of their own, and those that cannot be run a `problem`.
        structure: what holds the device's answer to calls; None for nothing.
        parallel: whether one answer may make several calls.
    """

    specs: tuple[dict[str, Any], ...]
    choice: Any
    check: Callable[[Iterable[ToolCall]], ToolCalls]
    structure: OutputFormat | None = None
    parallel: bool = True

    @property
    def must_call(self) -> bool:
        """Whether words alone are no answer."""
        match self.choice:
            case "auto" | {"allowed_tools": {"mode": "auto"}}:
                return False
        return True


@dataclass(frozen=True)
class HybridRequest:
    """What is asked, whoever answers.

    Attributes:
        messages: in the form of OpenAI's API, with nothing hidden.
        redactor: of the conversation; hides what is private in what is sent.
        sequences: where the device's KV cache comes from; None for a new one.
        form: None for any text. Without it `tools` may be there, and the other way around.
        on_break: what becomes of a cloud answer that breaks off; None for the client's own choice.
        cancellation: ends the answer, whoever is at it.
        key: idempotency key of the question to the cloud; None for a new one.
        seen: what the device sees in place of `messages`, where they are too many for it; None for
            all of them,
        overflow: and what was done, for the receipt.
    """

    messages: Messages
    options: Options
    redactor: Redactor
    sequences: DecodeStates | None = None
    form: RequestedFormat | None = None
    tools: OfferedTools | None = None
    on_break: OnBreak | None = None
    cancellation: CancellationToken = field(default_factory=CancellationToken)
    key: str | None = None
    seen: Messages | None = None
    overflow: Overflow | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the answer may be any text, and nothing but a text."""
        return self.form is None and self.tools is None

    @property
    def structure(self) -> OutputFormat | None:
        """What the device's answer is held to."""
        if self.form is not None:
            return self.form.structure
        return None if self.tools is None else self.tools.structure

    @property
    def besides(self) -> list[Mapping[str, Any]]:
        """What a cloud would be sent along with the messages."""
        told: list[Mapping[str, Any]] = [{"stop": self.options.stops}]
        if self.form is not None and self.form.response_format is not None:
            told.append(self.form.response_format)
        return told if self.tools is None else [*told, *self.tools.specs]

    def lender(self, runtime: Runtime) -> DecodeStates:
        """Who lends the sequences of the drafts."""
        return NewStates(runtime.engine) if self.sequences is None else self.sequences

    def encoded(self, runtime: Runtime) -> list[int]:
        """The prompt for the device; raises what `Runtime.encode` does."""
        return runtime.encode(self.messages, () if self.tools is None else self.tools.specs)


def hybrid_request_of(
    runtime: Runtime,
    messages: Messages,
    changes: Mapping[str, object],
    *,
    redactor: Redactor,
    sequences: DecodeStates | None = None,
) -> HybridRequest:
    """The request of keyword arguments, as `edgesdk.tools.tool_set.RequestKwargs` has them.

    Raises:
        InvalidOption, MissingExtra: see `parse_tool_kwargs`.
    """
    asked, offer = parse_tool_kwargs(
        changes, lambda: runtime.tool_format, runtime.encoder.tokenizer, lambda: used_ids(messages)
    )
    form = tools = None
    if offer is not None:
        specs, functions = {spec["function"]["name"]: spec for spec in offer.specs}, offer.functions
        tools = OfferedTools(
            offer.specs,
            _tool_choice(str(changes.get("tool_choice", "auto"))),
            lambda calls: check_tool_calls(calls, specs, functions, used_ids(messages)),
            offer.structure,
        )
    elif asked.structure is not None:
        form = _requested_format(asked.structure, changes.get("schema"))
    return HybridRequest(messages, asked.options, redactor, sequences, form, tools)


def schema_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's `response_format` for a JSON Schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}}


def _requested_format(structure: OutputFormat, schema: Any) -> RequestedFormat:
    if schema is None:
        return RequestedFormat(structure, None, structure.read)
    described = json_schema_of(schema)

    def read(text: str) -> Any:
        try:
            faults = schema_errors(described, json.loads(text))
        except (ValueError, RecursionError) as error:
            faults = [f"it is no JSON ({error})"]
        if faults:
            raise RejectedStructure(f"The answer has not its form: {'; '.join(faults)}", text=text)
        return structure.read(text)

    return RequestedFormat(structure, schema_format(described), read)


def _tool_choice(choice: str) -> Any:
    if choice in ("auto", "required"):
        return choice
    return {"type": "function", "function": {"name": choice}}


Prefer = Literal["local", "cloud"]


class HybridKwargs(RequestKwargs, total=False):
    """Those of `edgesdk.tools.tool_set.RequestKwargs`, and:

    upload: the privacy rule of this question, in place of the default and the tags'.
    tags: of this question, for the policy's rules.
    prefer: "cloud" asks there first, "local" keeps whatever the device says.
    """

    upload: Upload | None
    tags: Iterable[str]
    prefer: Prefer | None


class HybridActKwargs(OptionsKwargs, total=False):
    """The fields of `Options`, and those of `HybridKwargs` that say who may answer."""

    upload: Upload | None
    tags: Iterable[str]
    prefer: Prefer | None


@dataclass(frozen=True)
class RoutingRules:
    """Who may answer a question; see `HybridKwargs`."""

    upload: Upload | None
    tags: tuple[str, ...]
    prefer: Prefer | None


def split_rules(changes: Mapping[str, Any]) -> tuple[RoutingRules, dict[str, Any]]:
    """What is said of who may answer, and of the answer."""
    others = dict(changes)
    rules = RoutingRules(
        others.pop("upload", None), tuple(others.pop("tags", ())), others.pop("prefer", None)
    )
    return rules, others
