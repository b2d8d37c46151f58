"""Have a model answer prompts greedily, and say which answers are right."""

from __future__ import annotations

from collections.abc import Sequence

from edgesdk.errors import ContextOverflow
from edgesdk.model import Model
from edgesdk_export.distill.verifiers import Verifier, same_as_expected
from edgesdk_export.flywheel.examples import Example

# From which score of a verifier on an answer is right.
RIGHT = 0.5


def right_answers(
    model: Model,
    examples: Sequence[Example],
    *,
    max_tokens: int,
    verifier: Verifier = same_as_expected,
) -> list[bool]:
    """Whether the answer to each prompt is right; one that does not fit the context is not."""
    return [_right(model, example, max_tokens, verifier) for example in examples]


def _right(model: Model, example: Example, max_tokens: int, verifier: Verifier) -> bool:
    messages = [dict(message) for message in example.messages]
    try:
        reply = model.respond(messages, max_tokens=max_tokens, temperature=0.0)
    except ContextOverflow:
        return False
    sample = {"messages": messages, "answer": example.answer}
    return verifier(sample, reply.text) >= RIGHT
