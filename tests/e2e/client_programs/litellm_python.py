"""LiteLLM, which sends what any provider's API has."""

import sys

import litellm
from pydantic import BaseModel

litellm.telemetry = False


class Forecast(BaseModel):
    city: str
    degrees: int


QUESTION = [{"role": "user", "content": "Weather in Lima?"}]
SMALL = {"model": "openai/small", "api_base": sys.argv[1], "api_key": "unused"}
AGENT = {**SMALL, "model": "openai/agent"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}

reply = litellm.completion(**SMALL, messages=QUESTION, max_tokens=5, metadata={"a": "b"}, user="me")
assert reply.choices[0].message.content
stream = litellm.completion(**SMALL, messages=QUESTION, max_tokens=5, stream=True)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)

called = litellm.completion(**AGENT, messages=QUESTION, tools=[WEATHER], response_format=Forecast)
message = called.choices[0].message
assert [call.function.name for call in message.tool_calls] == ["weather"]
result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "21"}
final = litellm.completion(
    **AGENT, messages=[*QUESTION, message, result], tools=[WEATHER], response_format=Forecast
)
assert Forecast.model_validate_json(final.choices[0].message.content).degrees == 21

text = litellm.text_completion(
    model="text-completion-openai/small",
    api_base=sys.argv[1],
    api_key="unused",
    prompt=["One,", "Two,"],
    max_tokens=3,
)
assert len(text.choices) == 2

try:
    litellm.completion(**AGENT, messages=[{"role": "user", "content": "x" * 9000}])
except litellm.ContextWindowExceededError:
    pass
else:
    raise AssertionError("it fitted")
