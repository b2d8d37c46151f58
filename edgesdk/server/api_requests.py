"""Requests as OpenAI's API has them, checked; and the `Options` that they ask for.

A parameter that this server does not know is refused, because leaving it out silently would change
the answer. Those that OpenAI keeps for its own bookkeeping are taken and have no effect.
Source: https://platform.openai.com/docs/api-reference, chat/completions and completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError
from typing_extensions import TypedDict

from edgesdk.options import Options
from edgesdk.server.api_errors import ApiError, missing_parameter
from edgesdk.server.callable_tools import ToolDefinition
from edgesdk.server.chat_messages import PARTS_TAG, TEXT_TAG, ChatMessage, StrictModel

# OpenAI's default for the old endpoint.
_DEFAULT_COMPLETION_TOKENS = 16


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


class JsonSchemaFormat(StrictModel):
    """The JSON Schema of an answer. The answer is held to it, with or without `strict`."""

    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    # pydantic's own `schema` is a method.
    definition: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(StrictModel):
    """Says whether an answer is any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class BaseRequest(StrictModel):
    """The fields that both endpoints have."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    seed: int | None = None
    n: int | None = None
    user: str | None = None
    # Not OpenAI's, but known to other servers of its API.
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    # llama-server's names; -1 is all tokens.
    repeat_penalty: Annotated[float, Field(gt=0)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1)] | None = None
    dry_multiplier: Annotated[float, Field(ge=0)] | None = None
    dry_base: Annotated[float, Field(ge=1)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=1)] | None = None
    dry_penalty_last_n: Annotated[int, Field(ge=-1)] | None = None
    dry_sequence_breakers: list[Annotated[str, Field(min_length=1)]] | None = None
    # Ours.
    stop_on_repetition: bool | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a count of its tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def options(self, *, deadline: float, sampling: Mapping[str, float] | None = None) -> Options:
        """Decoding options.

        Args:
            sampling: the model's own, where the client says nothing else. Without it the
                temperature is 1, as OpenAI's.

        Raises:
            InvalidOption: a value is out of its range.
        """
        own = sampling or {}
        return Options(
            **self._penalties(own),
            max_tokens=self._max_tokens(),
            stop=() if self.stop is None else self.stop,
            temperature=own.get("temperature", 1.0)
            if self.temperature is None
            else self.temperature,
            top_k=int(own.get("top_k", 0)) if self.top_k is None else self.top_k,
            top_p=own.get("top_p", 1.0) if self.top_p is None else self.top_p,
            min_p=own.get("min_p", 0.0) if self.min_p is None else self.min_p,
            logit_bias=self.logit_bias or {},
            # OpenAI's seeds are 64 bits with a sign.
            seed=None if self.seed is None else self.seed % 2**64,
            deadline=deadline,
            stop_on_repetition=self.stop_on_repetition is not False,
        )

    def _penalties(self, own: Mapping[str, float]) -> _Penalties:
        """Those that are in force. A window of no tokens turns its penalty off."""
        given: _Penalties = {}
        if self.repeat_last_n != 0:
            penalty = self.repetition_penalty or self.repeat_penalty
            given["repetition_penalty"] = penalty or own.get("repetition_penalty", 1.0)
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
        if self.n not in (None, 1):
            raise ApiError(400, "Only n=1 is supported.", param="n", code="unsupported_value")
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                400, "stream_options goes with stream=true only.", param="stream_options"
            )
        self._check_equal("repeat_penalty", "repetition_penalty")

    def _check_equal(self, param: str, other: str) -> None:
        """Raise 400 where two names of one parameter have different values."""
        both = (getattr(self, param), getattr(self, other))
        if None not in both and both[0] != both[1]:
            raise ApiError(400, f"{param} and {other} contradict each other.", param=param)

    def _max_tokens(self) -> int | None:
        return self.max_tokens


class ChatRequest(BaseRequest):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=128)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    def check(self) -> None:
        super().check()
        self._check_equal("max_tokens", "max_completion_tokens")
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs goes with logprobs=true only.", param="top_logprobs")

    def _max_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(BaseRequest):
    """The body of `/v1/completions`: one prompt, as text or as token ids."""

    prompt: (
        str
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=1)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None

    def _max_tokens(self) -> int | None:
        return self.max_tokens or _DEFAULT_COMPLETION_TOKENS


def _window(last_n: int | None) -> int | None:
    return None if last_n in (None, -1) else last_n


_Request = TypeVar("_Request", bound=BaseRequest)


def parse(kind: type[_Request], body: bytes) -> _Request:
    """A checked request.

    Raises:
        ApiError: 400; it says which field is wrong, and how.
    """
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise _validation_error(error) from None
    request.check()
    return request


def _validation_error(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {first['msg']}.", code="invalid_json")
    param = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        message = f"The parameter {param!r} is not supported."
        return ApiError(400, message, param=param, code="unsupported_parameter")
    if first["type"] == "missing":
        return missing_parameter(str(param))
    where = "The body" if param is None else f"The parameter {param!r}"
    message = f"{where} is not valid: {first['msg']}."
    return ApiError(400, message, param=param, code="invalid_value")


def _path(steps: tuple[int | str, ...]) -> str | None:
    """The field that an error is about, without the tags of unions."""
    kept = [
        str(step)
        for at, step in enumerate(steps)
        if step not in (TEXT_TAG, PARTS_TAG) and not (at > 1 and steps[at - 2] == PARTS_TAG)
    ]
    return ".".join(kept) or None
