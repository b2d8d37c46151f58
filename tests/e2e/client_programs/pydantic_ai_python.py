"""pydantic-ai: agents with tools and an output type, native and as a tool."""

import sys

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Forecast(BaseModel):
    city: str
    degrees: int


provider = OpenAIProvider(base_url=sys.argv[1], api_key="unused")


def chat(name: str) -> OpenAIChatModel:
    return OpenAIChatModel(name, provider=provider)


plain = Agent(chat("small"), model_settings={"max_tokens": 5})
assert plain.run_sync("Hi").output

for output in (NativeOutput(Forecast), ToolOutput(Forecast, name="weather")):
    agent = Agent(chat("agent"), output_type=output)
    if isinstance(output, NativeOutput):

        @agent.tool_plain
        def weather(city: str) -> str:
            """Tell the weather."""
            return f"21 degrees in {city}"

    result = agent.run_sync("Weather in Lima?")
    assert result.output == Forecast(city="Lima", degrees=21), result.output
