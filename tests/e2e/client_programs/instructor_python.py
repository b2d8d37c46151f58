"""instructor, in each of the ways that it asks for an object."""

import sys

import instructor
import openai
from pydantic import BaseModel


class Forecast(BaseModel):
    city: str
    degrees: int


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON):
    client = instructor.from_openai(
        openai.OpenAI(base_url=sys.argv[1], api_key="unused", max_retries=0), mode=mode
    )
    asked = {"messages": [{"role": "user", "content": "Weather in Lima?"}], "max_retries": 0}
    made = client.chat.completions.create(model="agent", response_model=Forecast, **asked)
    assert made.model_dump() == {"city": "Lima", "degrees": 21}, (mode, made)
    if mode is not instructor.Mode.JSON:
        pieces = client.chat.completions.create_partial(
            model="agent", response_model=Forecast, **asked
        )
        assert list(pieces)[-1].degrees == 21
