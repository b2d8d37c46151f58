"""OpenAI's Agents SDK over chat completions: a tool, an output type, a stream."""

import asyncio
import sys

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel

set_tracing_disabled(True)


class Forecast(BaseModel):
    city: str
    degrees: int


@function_tool
def weather(city: str) -> str:
    """Tell the weather."""
    return f"21 degrees in {city}"


def model(name: str) -> OpenAIChatCompletionsModel:
    client = openai.AsyncOpenAI(base_url=sys.argv[1], api_key="unused", max_retries=0)
    return OpenAIChatCompletionsModel(name, client)


async def main() -> None:
    plain = Agent("plain", model=model("small"), model_settings=ModelSettings(max_tokens=5))
    assert (await Runner.run(plain, "Hi")).final_output
    agent = Agent("agent", model=model("agent"), tools=[weather], output_type=Forecast)
    wanted = Forecast(city="Lima", degrees=21)
    assert (await Runner.run(agent, "Weather in Lima?")).final_output == wanted
    streamed = Runner.run_streamed(agent, "Weather in Lima?")
    kinds = {event.type async for event in streamed.stream_events()}
    assert "raw_response_event" in kinds
    assert streamed.final_output == wanted


asyncio.run(main())
