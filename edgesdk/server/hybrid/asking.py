"""From a chat request to what the device and the cloud are asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers

from edgesdk.errors import RejectedStructure
from edgesdk.hybrid.ask import Ask, Form, Tools
from edgesdk.hybrid.privacy.policy import Policy, Verdict
from edgesdk.hybrid.privacy.vault import Vault
from edgesdk.runtime import Runtime
from edgesdk.server.arguments import value_check
from edgesdk.server.asking import Asked, chat_asked, check_together
from edgesdk.server.calling import CallReader, Reader, TextReader
from edgesdk.server.failures import ApiError
from edgesdk.server.hybrid.alone import alone
from edgesdk.server.hybrid.routing import Routing, RoutingFields, routing_of
from edgesdk.server.messages import conversation
from edgesdk.server.prompting import call_form
from edgesdk.server.requests import ChatRequest, ResponseFormat, parse
from edgesdk.server.settings import ServerSettings
from edgesdk.server.structure import FORMAT, blamed_on, format_asked
from edgesdk.server.tooling import Toolset, toolset_of
from edgesdk.structure.asking import Structure
from edgesdk.tools.calls import ToolCall, ToolCalls

_OF_DEVICE = "log-probabilities are the device's own"


class HybridChatRequest(ChatRequest):
    """The body of a chat request to a hybrid server."""

    edgesdk: RoutingFields | None = None


@dataclass(frozen=True)
class HybridAsked:
    """A checked request.

    Attributes:
        prepare: makes what is asked of a model and its cloud; for a worker thread.
        reader: what tells the device's text and its calls apart.
        may_call: whether the answer may be calls.
        whole: whether the answer is of use only as a whole.
    """

    model: str
    prepare: Callable[[Runtime], tuple[Ask, Verdict]]
    routing: Routing
    reader: Callable[[], Reader]
    may_call: bool
    whole: bool
    stream: bool
    wants_usage: bool


def ask_hybrid(
    body: bytes, headers: Headers, settings: ServerSettings, policy: Policy, started: float
) -> HybridAsked | Asked:
    """Read a request to `/v1/chat/completions`; one that only the device can answer is an `Asked`.

    Args:
        started: `time.perf_counter()` when it came.

    Raises:
        ApiError, InvalidOption, RequestError: it asks for something that cannot be done.
    """
    request = parse(HybridChatRequest, body)
    routing = routing_of(request.edgesdk, headers, policy)
    if request.logprobs:
        return alone(chat_asked(request, settings, started), _OF_DEVICE)
    structure = format_asked(request)
    toolset = toolset_of(request.tools, request.tool_choice, request.parallel_tool_calls)
    if toolset is not None:
        check_together(request, toolset)
    form = None
    # Calls that are demanded have a form of their own.
    if structure is not None and toolset is None:
        form = Form(structure, *_held_to(request.response_format))
    messages = conversation(request.messages, media=True)
    options = request.options(deadline=settings.deadline)
    choice = request.tool_choice or "auto"

    def prepare(runtime: Runtime) -> tuple[Ask, Verdict]:
        tools = None if toolset is None else _tools(toolset, choice, runtime)
        ask = Ask(
            messages,
            options,
            Vault(policy.detectors),
            form=form,
            tools=tools,
        )
        return ask, policy.judge(messages, call=routing.upload, besides=ask.besides)

    return HybridAsked(
        request.model,
        prepare,
        routing,
        reader=TextReader if toolset is None else lambda: CallReader(toolset),
        may_call=toolset is not None,
        whole=form is not None or (toolset is not None and toolset.must_call),
        stream=bool(request.stream),
        wants_usage=request.wants_usage,
    )


def _held_to(asked: ResponseFormat | None) -> tuple[dict[str, Any] | None, Callable[[str], Any]]:
    """What the cloud is told of a form, and how its answer is checked."""
    assert asked is not None, "there is no form without it"
    schema = {"type": "object"} if asked.json_schema is None else asked.json_schema.form
    assert schema is not None, "format_asked demands one"
    told = asked.model_dump(exclude_none=True, by_alias=True)
    try:
        fits = value_check(schema, param=FORMAT)
    except ApiError:
        # What cannot be checked the cloud cannot be held to.
        return None, json.loads

    def read(text: str) -> Any:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise RejectedStructure("The answer is no JSON.", text=text) from None
        if not fits(value):
            raise RejectedStructure("The answer does not fit its schema.", text=text)
        return value

    return told, read


def _tools(toolset: Toolset, choice: Any, runtime: Runtime) -> Tools:
    with blamed_on("tools"):
        held: Structure | None = call_form(toolset, runtime.dialect, runtime.encoder.tokenizer)

    def check(calls: Iterable[ToolCall]) -> ToolCalls:
        found = list(calls) if toolset.parallel else list(calls)[:1]
        return ToolCalls(
            call
            if toolset.checked_one(call) is not None
            else ToolCall(call.name, call.arguments, "it does not fit the tools", call.id)
            for call in found
        )

    return Tools(toolset.specs, choice, check, held, toolset.parallel)
