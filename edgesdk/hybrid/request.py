"""A request to the hybrid client: what is asked, and what only matters for who answers."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias, get_args

from typing_extensions import TypedDict

from edgesdk.engines.base import DecodeState, Engine
from edgesdk.hybrid.content import text_messages
from edgesdk.hybrid.privacy.policy import Upload, check_upload
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.options import OptionsKwargs
from edgesdk.overflow import Overflow
from edgesdk.request import Request
from edgesdk.system.checks import checked_choice
from edgesdk.tools.tool_set import RequestKwargs

Messages: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True)
class HybridRequest:
    """A request, with what matters only where a cloud may answer.

    Attributes:
        request: what is asked, with nothing hidden.
        redactor: of the conversation; hides what is private in what is sent.
        states: lends the device's decode states; None for new ones.
        append_only: what was given out of a cloud's answer cannot be withdrawn. One that breaks
            off is then neither begun again nor replaced.
        key: idempotency key of the question to the cloud; None for a new one.
        local_messages: what the device sees in place of the request's messages, where those are
            too many for it; None for all of them.
        overflow: what was done then, for the receipt.
    """

    request: Request
    redactor: Redactor
    states: DecodeStates | None = None
    append_only: bool = False
    key: str | None = None
    local_messages: Messages | None = None
    overflow: Overflow | None = None

    @cached_property
    def full(self) -> Request:
        """The whole request as text. Its tokens are what it weighs on the device, with its tools;
        they are counted once, before anybody decides who answers."""
        return _as_text(self.request, self.request.messages)

    @cached_property
    def for_device(self) -> Request:
        """The request that the device answers."""
        messages = self.local_messages
        return self.full if messages is None else _as_text(self.request, messages)

    @property
    def extras(self) -> list[Mapping[str, Any]]:
        """What a cloud would be sent besides the messages."""
        request = self.request
        extras: list[Mapping[str, Any]] = [{"stop": request.options.stops}, *request.specs]
        if request.output_format is not None and request.output_format.response_format is not None:
            extras.append(request.output_format.response_format)
        return extras


Prefer = Literal["local", "cloud"]


class RoutingKwargs(TypedDict, total=False):
    """Say who may answer.

    upload: the privacy rule of this question, in place of the default and the tags'.
    tags: of this question, for the policy's rules.
    prefer: "cloud" asks there first, "local" keeps whatever the device says.
    """

    upload: Upload | None
    tags: Iterable[str]
    prefer: Prefer | None


class HybridKwargs(RequestKwargs, RoutingKwargs, total=False):
    """Those of `edgesdk.tools.tool_set.RequestKwargs`, and who may answer."""


class HybridActKwargs(OptionsKwargs, RoutingKwargs, total=False):
    """The fields of `Options`, and who may answer."""


@dataclass(frozen=True)
class RoutingRules:
    """Who may answer a request; see `RoutingKwargs`."""

    upload: Upload | None
    tags: tuple[str, ...]
    prefer: Prefer | None


def split_rules(changes: Mapping[str, Any]) -> tuple[RoutingRules, dict[str, Any]]:
    """Split keyword arguments into the routing rules and those of the request."""
    others = dict(changes)
    upload, prefer = others.pop("upload", None), others.pop("prefer", None)
    tags = others.pop("tags", ())
    rules = RoutingRules(
        None if upload is None else check_upload(upload),
        (tags,) if isinstance(tags, str) else tuple(tags),
        None if prefer is None else checked_choice("prefer", prefer, get_args(Prefer)),
    )
    return rules, others


class DecodeStates(Protocol):
    """Lends decode states to answers. What a state already holds is not computed again.

    An answer names its engine: after a warm start another one takes over, to which the states of
    the one before are of no use.
    """

    def take(self, engine: Engine, prompt: list[int]) -> DecodeState:
        """Lend a state of `engine` to answer `prompt` on; who takes it releases it, or closes it.
        Those of other engines are freed."""

    def release(self, engine: Engine, state: DecodeState) -> None:
        """Take a state of `engine` back."""


class ConversationState:
    """Implements `DecodeStates` for a conversation: its latest state waits for the next turn.

    Args:
        held: a state that holds some of it already, with its engine; belongs to this from now on.
    """

    def __init__(self, held: tuple[Engine, DecodeState] | None = None) -> None:
        self._held = held
        self._guard = threading.Lock()

    def take(self, engine: Engine, prompt: list[int]) -> DecodeState:
        with self._guard:
            held, self._held = self._held, None
        if held is not None:
            of, state = held
            if of is engine:
                return state
            state.close()
        return engine.new_state()

    def release(self, engine: Engine, state: DecodeState) -> None:
        with self._guard:
            old, self._held = self._held, (engine, state)
        if old is not None:
            old[1].close()

    def give_back(self, lender: DecodeStates | None) -> None:
        """Give the state to who lent it; free it where it was nobody's."""
        with self._guard:
            held, self._held = self._held, None
        if held is not None and lender is not None:
            lender.release(*held)
        elif held is not None:
            held[1].close()

    def fork(self) -> ConversationState:
        """A copy with the same KV cache."""
        with self._guard:
            held = self._held
            return ConversationState(None if held is None else (held[0], held[1].fork()))

    def close(self) -> None:
        """Free the KV cache."""
        self.give_back(None)


def _as_text(request: Request, messages: Messages) -> Request:
    texts = text_messages(messages)
    return request if texts == request.messages else request.replaced(messages=texts)
