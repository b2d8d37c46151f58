"""LangChain's ChatOpenAI: plain, streamed, structured, tools, and both at once."""

import sys

from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Forecast(BaseModel):
    """The weather of a city."""

    city: str
    degrees: int


@tool
def weather(city: str) -> str:
    """Tell the weather."""
    return f"21 degrees in {city}"


def chat(model: str, **more: object) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=sys.argv[1], api_key="unused", max_retries=0, **more)


assert chat("small", max_tokens=5).invoke("Hi").content
assert "".join(piece.content for piece in chat("small", max_tokens=5).stream("Hi"))
for method in ("json_schema", "function_calling"):
    agent = chat("agent").with_structured_output(Forecast, method=method)
    answer = agent.invoke("Weather in Lima? As JSON.")
    assert isinstance(answer, Forecast), answer
answer = chat("small", max_tokens=80, temperature=0).with_structured_output(
    Forecast, method="json_schema", include_raw=True
).invoke("Weather in Lima?")  # fmt: skip
assert answer["parsed"] or answer["parsing_error"]

both = chat("agent").bind_tools([weather], strict=True, response_format=Forecast)
messages = [HumanMessage("Weather in Lima?")]
first = both.invoke(messages)
assert [call["name"] for call in first.tool_calls] == ["weather"]
done = weather.invoke(first.tool_calls[0]["args"])
messages += [first, ToolMessage(done, tool_call_id=first.tool_calls[0]["id"])]
assert both.invoke(messages).additional_kwargs["parsed"] == Forecast(city="Lima", degrees=21)

demanded = chat("small", max_tokens=60).bind_tools([weather], tool_choice="weather")
assert len(demanded.invoke("Weather in Lima?").tool_calls) <= 1

try:
    chat("agent").invoke("x" * 9000)
except ContextOverflowError:
    pass
else:
    raise AssertionError("it fitted")
