"""OpenAI's own client, of another version than the tests' own: sync and async."""

import asyncio
import sys

import openai
from pydantic import BaseModel


class Forecast(BaseModel):
    city: str
    degrees: int


URL = sys.argv[1]
WEATHER = openai.pydantic_function_tool(Forecast, name="weather")
QUESTION = [{"role": "user", "content": "Weather in Lima?"}]
client = openai.OpenAI(base_url=URL, api_key="unused", max_retries=0)

reply = client.chat.completions.create(model="small", messages=QUESTION, max_tokens=8)
assert reply.choices[0].message.content and reply.usage.completion_tokens <= 8
assert reply._request_id

stream = client.chat.completions.create(
    model="small", messages=QUESTION, max_tokens=8, stream=True, n=2, temperature=0.7, seed=1
)
indexes = {choice.index for chunk in stream for choice in chunk.choices}
assert indexes == {0, 1}

for model in ("agent", "small"):
    parsed = client.chat.completions.parse(
        model=model, messages=QUESTION, response_format=Forecast, max_tokens=60
    )
    choice = parsed.choices[0]
    assert choice.finish_reason == "length" or choice.message.parsed

with client.chat.completions.stream(
    model="agent", messages=QUESTION, tools=[WEATHER], response_format=Forecast
) as events:
    names = [event.name for event in events if event.type == "tool_calls.function.arguments.done"]
    first = events.get_final_completion().choices[0].message
assert names == ["weather"], names
result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "21 degrees"}
final = client.chat.completions.parse(
    model="agent", messages=[*QUESTION, first, result], tools=[WEATHER], response_format=Forecast
)
assert final.choices[0].message.parsed == Forecast(city="Lima", degrees=21)

named = client.chat.completions.create(
    model="small",
    messages=QUESTION,
    tools=[WEATHER],
    tool_choice={"type": "function", "function": {"name": "weather"}},
    max_tokens=60,
)
assert len(named.choices[0].message.tool_calls or []) <= 1

try:
    client.chat.completions.create(
        model="agent", messages=[{"role": "user", "content": "x" * 9000}]
    )
except openai.BadRequestError as error:
    assert error.code == "context_length_exceeded"
else:
    raise AssertionError("it fitted")


async def several() -> list[str | None]:
    async with openai.AsyncOpenAI(base_url=URL, api_key="unused", max_retries=0) as many:
        asked = [
            many.chat.completions.create(model="small", messages=QUESTION, max_tokens=3)
            for _ in range(3)
        ]
        return [made.choices[0].message.content for made in await asyncio.gather(*asked)]


assert len(set(asyncio.run(several()))) == 1
