"""One question to the hybrid client: its keyword arguments, and the request made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from edgesdk.hybrid.cloud.failover import OnBreak
from edgesdk.hybrid.decode_states import DecodeStates, NewStates
from edgesdk.hybrid.privacy.policy import Upload
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.options import Options, OptionsKwargs
from edgesdk.overflow import Overflow
from edgesdk.request import Request
from edgesdk.runtime import Runtime
from edgesdk.structured.output_format import OutputFormat
from edgesdk.system.cancellation import CancellationToken
from edgesdk.tools.call_messages import used_ids
from edgesdk.tools.tool_set import RequestKwargs, ToolSet

Messages: TypeAlias = list[dict[str, Any]]


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
    form: OutputFormat | None = None
    tools: ToolSet | None = None
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
    def used_ids(self) -> set[str]:
        """The ids of all calls of the conversation."""
        return used_ids(self.messages)

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

    def for_device(self, runtime: Runtime) -> Request:
        """What the device is asked."""
        return Request(
            self.messages,
            self.options,
            runtime.encode,
            self.form,
            self.tools,
            cancellation=self.cancellation,
        )


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
        InvalidOption, MissingExtra: see `edgesdk.request.request_from`.
    """
    request = runtime.request(messages, changes)
    return HybridRequest(
        messages, request.options, redactor, sequences, request.output_format, request.tools
    )


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
