"""Let a model call Python functions: arguments are checked before a function runs."""

from __future__ import annotations

import sys
from typing import Literal

import edgesdk


def weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
    """Tell the weather in a city."""
    return f"It rains in {city}, at 12 degrees {unit}."


def main(name: str) -> None:
    """Have a tool called, and answer with what it returned."""
    with edgesdk.load(name) as model, model.chat() as chat:
        question = "What is the weather in Oslo?"
        # "required" holds the answer to a call; chat.act(question, tools=[weather]) leaves it to
        # the model, and runs the calls by itself.
        reply = chat.respond(question, tools=[weather], tool_choice="required", max_tokens=200)
        for call in reply.tool_calls:
            print(f"{call.name}({call.arguments})")
            chat.add_tool_result(call, weather(**call.arguments))
        print(chat.respond(max_tokens=60).text)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
