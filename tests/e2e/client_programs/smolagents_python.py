"""smolagents: its OpenAI model, and an agent that calls tools."""

import sys

from smolagents import OpenAIModel, Tool, ToolCallingAgent


class Weather(Tool):
    name = "weather"
    description = "Tell the weather."
    inputs = {"city": {"type": "string", "description": "The city."}}  # noqa: RUF012
    output_type = "string"

    def forward(self, city: str) -> str:
        return f"21 degrees in {city}"


def model(name: str) -> OpenAIModel:
    return OpenAIModel(model_id=name, api_base=sys.argv[1], api_key="unused")


question = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
assert model("small").generate(question, max_tokens=5, stop_sequences=["Observation:"]).content
assert list(model("small").generate_stream(question, max_tokens=5))
agent = ToolCallingAgent(tools=[Weather()], model=model("agent"), max_steps=2)
agent.run("Weather in Lima?")
steps = [step for step in agent.memory.steps if getattr(step, "tool_calls", None)]
assert steps[0].tool_calls[0].name == "weather"
