"""Requests as OpenAI's API has them, checked; and the `Options` that they ask for.

What is not a field here has another name, changes nothing, or is refused: see
`edgesdk.server.request_fields`.
Source: https://platform.openai.com/docs/api-reference, chat/completions and completions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json, to_json
from typing_extensions import TypedDict

from edgesdk.options import Options, Reasoning
from edgesdk.server.api_errors import ApiError, missing_parameter
from edgesdk.server.callable_tools import ToolDefinition
from edgesdk.server.chat_messages import ChatMessage, MessageModel, StrictModel
from edgesdk.server.request_fields import accepted_fields

# OpenAI's default for the old endpoint.
_DEFAULT_COMPLETION_TOKENS = 16
# Several answers to one prompt are to differ.
_TEMPERATURE_OF_SEVERAL = 1.0
_MAX_ANSWERS = 128
# What a chat template is given anyway.
_TEMPLATE_NAMES = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token")
)


class _Penalties(TypedDict, total=False):
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int | None
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_window: int | None
    dry_sequence_breakers: list[str]


class StreamOptions(StrictModel):
    """Says what a stream carries besides the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: Literal[False] | None = None


class JsonSchemaFormat(MessageModel):
    """The JSON Schema of an answer. The answer is held to it, with or without `strict`."""

    name: str | None = None
    description: str | None = None
    # pydantic's own `schema` is a method.
    definition: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(MessageModel):
    """Says whether an answer is any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    # Of a "json_object", as llama-server and Together have it.
    definition: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class StructuredOutputs(MessageModel):
    """vLLM's way to ask for an output format."""

    # pydantic has methods of these names.
    definition: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class BaseRequest(StrictModel):
    """The fields that both endpoints have."""

    model: str = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # -1 is no limit.
    max_tokens: Annotated[int, Field(ge=-1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    # 64 bits with a sign, as OpenAI's; -1 is another one each time.
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=_MAX_ANSWERS)] | None = None
    response_format: ResponseFormat | None = None
    # Not OpenAI's, but known to other servers of its API. In top_k, -1 is all tokens.
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    # llama-server's names; -1 is all tokens.
    repeat_last_n: Annotated[int, Field(ge=-1)] | None = None
    dry_multiplier: Annotated[float, Field(ge=0)] | None = None
    dry_base: Annotated[float, Field(ge=1)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=1)] | None = None
    dry_penalty_last_n: Annotated[int, Field(ge=-1)] | None = None
    dry_sequence_breakers: list[Annotated[str, Field(min_length=1)]] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    # Output formats: llama-server's and vLLM's names.
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    # Ollama's and LM Studio's: how long the model stays loaded, and the context it must have.
    keep_alive: str | float | None = None
    ttl: Annotated[float, Field(ge=0)] | None = None
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    # Ours.
    stop_on_repetition: bool | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a count of its tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def options(
        self, *, deadline: float, sampling: Mapping[str, float] | None = None, index: int = 0
    ) -> Options:
        """Decoding options.

        Args:
            sampling: the model's own, where the client says nothing else; as in the library, the
                likeliest token where the model has none.
            index: of the answer, of `n`.

        Raises:
            InvalidOption: a value is out of its range.
        """
        own = sampling or {}
        goes_on = bool(self.ignore_eos or self.min_tokens)
        usual = own.get("temperature", 0.0) if self.n in (None, 1) else _TEMPERATURE_OF_SEVERAL
        return Options(
            **self._penalties(own),
            max_tokens=self._max_tokens(),
            stop=() if self.stop is None else self.stop,
            temperature=usual if self.temperature is None else self.temperature,
            top_k=int(own.get("top_k", 0)) if self.top_k is None else max(self.top_k, 0),
            top_p=own.get("top_p", 1.0) if self.top_p is None else self.top_p,
            min_p=own.get("min_p", 0.0) if self.min_p is None else self.min_p,
            logit_bias=self.logit_bias or {},
            seed=None if self.seed in (None, -1) else (self.seed + index) % 2**64,
            deadline=deadline,
            stop_on_repetition=not goes_on
            if self.stop_on_repetition is None
            else self.stop_on_repetition,
            min_tokens=self.min_tokens or 0,
            ignore_eos=bool(self.ignore_eos),
            stop_token_ids=self.stop_token_ids or (),
        )

    def _penalties(self, own: Mapping[str, float]) -> _Penalties:
        """Those that are in force. A window of no tokens turns its penalty off."""
        given: _Penalties = {}
        if self.repeat_last_n != 0:
            usual = own.get("repetition_penalty", 1.0)
            given["repetition_penalty"] = self.repetition_penalty or usual
            given["presence_penalty"] = self.presence_penalty or 0.0
            given["frequency_penalty"] = self.frequency_penalty or 0.0
            given["penalty_window"] = _window(self.repeat_last_n)
        if self.dry_multiplier and self.dry_penalty_last_n != 0:
            given["dry_multiplier"] = self.dry_multiplier
            given["dry_window"] = _window(self.dry_penalty_last_n)
            if self.dry_base is not None:
                given["dry_base"] = self.dry_base
            if self.dry_allowed_length is not None:
                given["dry_allowed_length"] = self.dry_allowed_length
            if self.dry_sequence_breakers is not None:
                given["dry_sequence_breakers"] = self.dry_sequence_breakers
        return given

    def check(self) -> None:
        """Raise 400 where fields that are right by themselves do not go together."""
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                400, "stream_options goes with stream=true only.", param="stream_options"
            )

    def _max_tokens(self) -> int | None:
        return None if self.max_tokens == -1 else self.max_tokens


class ChatRequest(BaseRequest):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=128)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    # vLLM's; without them, a last message of the assistant is continued, as on llama-server.
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    # Whether and how much the model reasons. The variables are the chat template's, as
    # `enable_thinking`; those that it does not read change nothing.
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    max_reasoning_tokens: Annotated[int, Field(ge=1)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def continues(self) -> bool:
        """Whether the answer goes on with the assistant's last message."""
        last = self.messages[-1]
        fits = last.role == "assistant" and bool(last.text) and not last.tool_calls
        return fits and self.continue_final_message is not False

    @property
    def reasoning(self) -> Reasoning:
        """The effort as an option."""
        match self.reasoning_effort:
            case None:
                return "auto"
            case "none":
                return "off"
            case "minimal":
                return "low"
            case "xhigh":
                return "high"
            case effort:
                return effort

    def check(self) -> None:
        super().check()
        taken = _TEMPLATE_NAMES & (self.chat_template_kwargs or {}).keys()
        if taken:
            raise ApiError(
                400,
                f"{sorted(taken)[0]!r} is no variable that a request sets.",
                param="chat_template_kwargs",
                code="invalid_value",
            )
        if self.max_tokens == 0:
            message = "max_tokens must not be 0."
            raise ApiError(400, message, param="max_tokens", code="invalid_value")
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs goes with logprobs=true only.", param="top_logprobs")
        if self.continue_final_message and not self.continues:
            raise ApiError(
                400, "The last message is no text of the assistant.", param="continue_final_message"
            )
        if self.add_generation_prompt is False and not self.continues:
            raise ApiError(
                400,
                "Without a generation prompt there must be a last message of the assistant to go on"
                " with.",
                param="add_generation_prompt",
            )


class CompletionRequest(BaseRequest):
    """The body of `/v1/completions`: a prompt as text or as token ids, or several of them."""

    prompt: (
        str
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[
            list[str | Annotated[list[int], Field(min_length=1)]],
            Field(min_length=1, max_length=_MAX_ANSWERS),
        ]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: bool | None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one."""
        given: Any = self.prompt
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given

    def check(self) -> None:
        super().check()
        if self.best_of not in (None, self.n or 1):
            raise ApiError(400, "best_of must be n: none is left out.", param="best_of")
        if len(self.prompts) * (self.n or 1) > _MAX_ANSWERS:
            raise ApiError(400, f"There are more than {_MAX_ANSWERS} answers.", param="n")

    def _max_tokens(self) -> int | None:
        if self.max_tokens == 0:
            # The prompt alone is wanted; what the engine says to it is left out.
            return 1
        return _DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else super()._max_tokens()


_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)(ms|s|m|h|)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


def keep_alive_seconds(request: BaseRequest) -> float | None:
    """How long the model is to stay loaded; below 0 is for ever. None where nothing is said.

    Raises:
        ApiError: 400; it is no duration.
    """
    given = request.ttl if request.keep_alive is None else request.keep_alive
    return None if given is None else seconds_of(given)


def seconds_of(keep_alive: str | float) -> float:
    """The seconds of a duration, as "10m" or 600.

    Raises:
        ApiError: 400; it is none.
    """
    if not isinstance(keep_alive, str):
        return keep_alive
    parts = list(_DURATION.finditer(keep_alive))
    if not parts or "".join(part[0] for part in parts) != keep_alive:
        raise ApiError(
            400,
            'keep_alive is a duration, as "10m" or 600.',
            param="keep_alive",
            code="invalid_value",
        )
    return sum(float(part[1]) * _UNIT_SECONDS[part[2]] for part in parts)


def _window(last_n: int | None) -> int | None:
    return None if last_n in (None, -1) else last_n


_Request = TypeVar("_Request", bound=BaseRequest)
_Model = TypeVar("_Model", bound=BaseModel)


def parse(kind: type[_Request], body: bytes) -> _Request:
    """A checked request.

    Raises:
        ApiError: 400; it says which field is wrong, and how.
    """
    given = _value(body)
    if isinstance(given, dict):
        body = to_json(accepted_fields(given, kind.model_fields))
    request = validated(kind, body)
    request.check()
    return request


def validated(kind: type[_Model], body: bytes) -> _Model:
    """A body as a model of pydantic's.

    Raises:
        ApiError: 400; it says which field is wrong, and how.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _validation_error(error, _value(body)) from None


def _value(body: bytes) -> Any:
    """The body's value; None where it is no JSON, of which validation says better what is wrong."""
    with suppress(ValueError):
        return from_json(body)
    return None


def _validation_error(error: ValidationError, given: Any) -> ApiError:
    """The error about the place that was wrong: of a union's branches, the one that fits best."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    if found[0]["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {found[0]['msg']}.", code="invalid_json")
    places = [_place(each, given) for each in found]
    field = places[0][:1]
    deepest = max((place for place in places if place[:1] == field), key=len)
    at = [each for each, place in zip(found, places, strict=True) if place == deepest]
    param = ".".join(map(str, deepest)) or None
    if at[0]["type"] == "missing":
        return missing_parameter(str(param))
    where = "The body" if param is None else f"The parameter {param!r}"
    message = f"{where} is not valid: {', or '.join(dict.fromkeys(e['msg'] for e in at))}."
    return ApiError(400, message, param=param, code="invalid_value")


def _place(error: Any, given: Any) -> tuple[int | str, ...]:
    """The steps from a body to the value that an error is about, without the names of a union's
    branches."""
    place: list[int | str] = []
    steps = error["loc"]
    for at, step in enumerate(steps):
        listed = isinstance(given, list) and isinstance(step, int) and step < len(given)
        if listed or (isinstance(given, dict) and step in given):
            given = given[step]
            place.append(step)
        elif at == len(steps) - 1 and error["type"] == "missing":
            place.append(step)
    return tuple(place)
