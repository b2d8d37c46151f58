"""What a model writes around its reasoning, and how its chat template turns reasoning on and off.

A model that reasons thinks aloud before it answers, between marks such as `<think>` and `</think>`.
The marks of all families are in one table; which of them are a model's is seen in its chat
template, as are the variables that steer it.

Sources: the chat templates that the models' makers publish, 70 of which llama.cpp collects in its
folder `models/templates`; gpt-oss: https://cookbook.openai.com/articles/openai-harmony.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgesdk.errors import InvalidOption, TemplateError
from edgesdk.text.template import ChatTemplate

Variables = Mapping[str, Any]


@dataclass(frozen=True)
class ReasoningMarks:
    """The texts around the reasoning of one family. None of them is ever shown.

    Attributes:
        opening: begins it. Some templates end the prompt with it.
        closing: ends it.
        headers: stand between it and the answer, in this order, or before an answer without any.
        ending: ends the answer, after which the model may reason again; "" where nothing does.
    """

    opening: str
    closing: str
    headers: tuple[str, ...] = ()
    ending: str = ""

    @property
    def all(self) -> tuple[str, ...]:
        """All of them."""
        return self.opening, self.closing, *self.headers, self.ending

    def is_open(self, prompt: str) -> bool:
        """Whether an answer to `prompt` starts inside the reasoning."""
        return prompt.rstrip().endswith(self.opening.rstrip())


# Where one's marks are a part of another's, the longer ones come first.
MARKS = (
    ReasoningMarks(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        ("<|start|>assistant", "<|channel|>final<|message|>"),
        "<|end|>",
    ),
    ReasoningMarks("<|channel>thought\n", "<channel|>"),
    ReasoningMarks("<|think|>", "<|end|>", ("<|begin|>assistant", "<|content|>")),
    ReasoningMarks(
        " to=self<|message|>", "<|eom|>", ("<|start|>assistant", " to=user<|message|>"), "<|eom|>"
    ),
    ReasoningMarks(
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        ("<|open|>response<|sep|>",),
        "<|close|>response<|sep|>",
    ),
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_TEXT|>",)),
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>",)),
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningMarks("<|inner_prefix|>", "<|inner_suffix|>"),
    ReasoningMarks("<seed:think>", "</seed:think>"),
    ReasoningMarks("<mm:think>", "</mm:think>"),
    ReasoningMarks("<think:opensource>", "</think:opensource>"),
    ReasoningMarks("[THINK]", "[/THINK]"),
    ReasoningMarks(
        "Here are my reasoning steps:\n",
        "[BEGIN FINAL RESPONSE]",
        ending="[END FINAL RESPONSE]",
    ),
    ReasoningMarks("Here is my thought process:", "Here is my response:"),
    ReasoningMarks("<think>", "</think>", ("<response>",), "</response>"),
    ReasoningMarks("<think>", "</think>"),
    ReasoningMarks("<thinking>", "</thinking>"),
    ReasoningMarks("<thought>", "</thought>"),
    ReasoningMarks("<reasoning>", "</reasoning>"),
)
# These close other things as well.
_COMMON = frozenset({"<|end|>", "<|eom|>"})

# The levels of `Options.reasoning` that ask for something.
LEVELS = ("off", "low", "medium", "high")
# What templates call their switch, with the values of off and on.
_SWITCHES: Mapping[str, tuple[Any, Any]] = {
    "enable_thinking": (False, True),
    "thinking": (False, True),
    "thinking_mode": ("disabled", "enabled"),
    "thinking_option": ("off", "on"),
    "thinking_budget": (0, None),
}
# What they call the effort; and those words for none that a template must name to know them.
_EFFORTS = ("reasoning_effort", "thinking_effort", "reasoning_strength")
_NO_EFFORT = ("no_think", "none")


@dataclass(frozen=True)
class ReasoningFormat:
    """How a model reasons, as far as its chat template tells.

    Attributes:
        marks: around its reasoning; None for a model that does not reason.
        levels: the variables of the template that ask for each of `LEVELS`, where it has some.
    """

    marks: ReasoningMarks | None = None
    levels: Mapping[str, Variables] = field(default_factory=dict)

    def variables(self, level: str) -> Variables:
        """The template's variables for a level; none for "auto", its own default.

        An effort is a hint: a model that always reasons does so at any.

        Raises:
            InvalidOption: it is to reason, or not to, and cannot.
        """
        if level != "auto" and self.marks is not None and level in self.levels:
            return self.levels[level]
        reasons = self.marks is not None
        if level == "auto" or (level != "off") == reasons:
            return {}
        if reasons:
            raise InvalidOption(
                "reasoning is 'off', and this model's chat template has no switch for that.",
                hint="Leave it out, or let max_reasoning_tokens=1 close its reasoning at once.",
            )
        raise InvalidOption(
            f"reasoning is {level!r}, and this model does not reason.",
            hint="Leave it out, or use a model that reasons.",
        )


def detect_reasoning(template: ChatTemplate | None) -> ReasoningFormat:
    """Find out how a model reasons, by reading and trying its template."""
    if template is None:
        return ReasoningFormat()
    thought = {"role": "assistant", "content": "probe_words", "reasoning_content": "probe_thought"}
    asked = {"role": "user", "content": "?"}
    shown = [template.source, _rendered(template, [asked], {})]
    shown.append(_rendered(template, [asked, thought, asked], {}))
    marks = _marks_in("\n".join(text for text in shown if text is not None))
    if marks is None:
        return ReasoningFormat()
    named = template.variables
    levels = {}
    for level in LEVELS:
        for variables in _candidates(template, named, level):
            prompt = _rendered(template, [asked], variables)
            if prompt is not None and not (level == "off" and marks.is_open(prompt)):
                levels[level] = variables
                break
    return ReasoningFormat(marks, levels)


def _marks_in(text: str) -> ReasoningMarks | None:
    for marks in MARKS:
        telling = {marks.opening, marks.closing} - _COMMON
        if any(mark in text for mark in telling) and all(mark in text for mark in marks.headers):
            return marks
    return None


def _candidates(template: ChatTemplate, named: frozenset[str], level: str) -> Sequence[Variables]:
    """The variables that may ask for a level, the best first."""
    switches = {name: values[level != "off"] for name, values in _SWITCHES.items() if name in named}
    if "skip_thinking" in named and level == "off":
        switches["skip_thinking"] = True
    found = {name: value for name, value in switches.items() if value is not None}
    efforts = [name for name in _EFFORTS if name in named]
    words: tuple[str, ...] = (level,)
    if level == "off":
        words = tuple(word for word in _NO_EFFORT if word in template.literals.split("\0"))
    elif level == "medium":
        # Some templates know two.
        words = ("medium", "high")
    with_effort = [{**found, name: word} for name in efforts for word in words]
    return [*with_effort, found] if found else with_effort


def _rendered(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], variables: Variables
) -> str | None:
    try:
        text = template.render(messages, bos_token="", eos_token="", **variables)
    except TemplateError:
        return None
    return text.plain
