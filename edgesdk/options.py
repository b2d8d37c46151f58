"""How an answer is decoded: one frozen value, checked when it is made."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from typing_extensions import TypedDict

from edgesdk.errors import InvalidOption
from edgesdk.system.checks import checked_choice

Speculation = Literal["auto", "lookup", "off"]
Reasoning = Literal["auto", "off", "low", "medium", "high"]


class OptionsKwargs(TypedDict, total=False):
    """The fields of `Options` as keyword arguments."""

    max_tokens: int | None
    stop: str | Sequence[str]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int | None
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_window: int | None
    dry_sequence_breakers: Sequence[str]
    logit_bias: Mapping[int, float]
    seed: int | None
    deadline: float | None
    priority: int
    speculate: Speculation | None
    stop_on_repetition: bool
    min_tokens: int
    ignore_eos: bool
    stop_token_ids: Sequence[int]
    reasoning: Reasoning
    max_reasoning_tokens: int | None


@dataclass(frozen=True)
class Options:
    """Decoding options. By themselves they are greedy: the likeliest token, always.

    A request for free text that leaves out sampling options (temperature to repetition_penalty)
    takes those that the model's makers recommend, where they do: `edgesdk show` tells. Say
    `temperature=0` for the likeliest token.

    Attributes:
        max_tokens: most tokens of the answer; None for as many as the context holds.
        stop: the answer ends before the first of these texts. In its reasoning they do not count.
        temperature: divides the logits; 0 is greedy, and the four sampling fields after it are
            then without effect.
        top_k: sample among the k likeliest tokens; 0 for all.
        top_p: sample among the likeliest tokens that together reach this probability; 1 for all.
        min_p: sample among tokens at least this likely, relative to the likeliest; 0 for all.
        repetition_penalty: above 1 makes tokens of the prompt and the answer less likely.
        presence_penalty: subtracted from the logit of each token that the answer has.
        frequency_penalty: subtracted once for each time that the answer has the token.
        penalty_window: how many of the latest tokens the penalties look at; None for all.
        dry_multiplier: above 0, DRY makes tokens less likely that would go on with a repetition of
            the prompt or the answer; 0.8 is usual. A repetition of `n` tokens costs its next token
            `dry_multiplier * dry_base ** (n - dry_allowed_length)`.
        dry_base: how fast that grows with the repetition's length.
        dry_allowed_length: shorter repetitions cost nothing.
        dry_window: how many of the latest tokens DRY looks at; None for all.
        dry_sequence_breakers: texts that end a repetition. They count within one token.
        logit_bias: added to the logits of these token ids; -inf forbids a token.
        seed: of the random generator; None for another one each time.
        deadline: seconds that the answer may take, prefill included; what is there then is the
            answer.
        priority: from -10 to 10; of the answers that wait for the engine, a higher one goes first.
        speculate: verify guesses of the next tokens together, which is faster where many are
            right and stops by itself where they are not. "auto" guesses with the draft model, or
            from the text so far where none was loaded, and, where chance plays no part
            (temperature 0, or a seed), only if the engine was measured to compute the same logits
            together as one by one: the answer is that of "off". "lookup" guesses from the text so
            far without that proof: a near tie of two tokens may then fall the other way. None is
            "auto". What it brings depends on the model, the engine and the task (see
            benchmarks/speed/speculation.py).
        stop_on_repetition: end an answer that goes in a cycle, with the finish reason "repetition".
            One turn of the cycle is left. Answers that have an output format never end so; see
            `edgesdk.generation.repetition`.
        min_tokens: no token ends the answer before it has so many. Without effect on an answer that
            has an output format, which ends where its format does.
        ignore_eos: no token ends the answer at all, for measurements; as for `min_tokens`.
        stop_token_ids: tokens that end the answer, besides the model's own.
        reasoning: whether the model reasons before it answers: "auto" is what its chat template
            does by itself, "off" and the efforts are what the template has a switch for. A model
            that only knows on and off takes an effort for on. A model that cannot do without
            reasoning, or cannot reason, refuses with InvalidOption. See
            docs/explanation/reasoning.md.
        max_reasoning_tokens: the reasoning is closed after so many tokens, and the answer begins;
            None for any number. `max_tokens` counts both.

    Raises:
        InvalidOption: a value is of a wrong type or out of its range.
    """

    max_tokens: int | None = None
    stop: str | Sequence[str] = ()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int | None = None
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_window: int | None = None
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    deadline: float | None = None
    priority: int = 0
    speculate: Speculation | None = None
    stop_on_repetition: bool = True
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: Sequence[int] = ()
    reasoning: Reasoning = "auto"
    max_reasoning_tokens: int | None = None

    def __post_init__(self) -> None:
        _whole("max_tokens", self.max_tokens, 1, optional=True)
        _number("temperature", self.temperature, 0, math.inf)
        _whole("top_k", self.top_k, 0)
        _number("top_p", self.top_p, 0, 1, above=True)
        _number("min_p", self.min_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0, math.inf, above=True)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        _whole("penalty_window", self.penalty_window, 1, optional=True)
        _number("dry_multiplier", self.dry_multiplier, 0, math.inf)
        _number("dry_base", self.dry_base, 1, math.inf)
        _whole("dry_allowed_length", self.dry_allowed_length, 1)
        _whole("dry_window", self.dry_window, 1, optional=True)
        _whole("seed", self.seed, 0, optional=True)
        if self.deadline is not None:
            _number("deadline", self.deadline, 0, math.inf, above=True)
        _whole("priority", self.priority, -10)
        _number("priority", self.priority, -10, 10)
        if self.speculate is not None:
            checked_choice("speculate", self.speculate, get_args(Speculation))
        checked_choice("reasoning", self.reasoning, get_args(Reasoning))
        _whole("max_reasoning_tokens", self.max_reasoning_tokens, 1, optional=True)
        for name in ("stop_on_repetition", "ignore_eos"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidOption(f"{name} must be True or False, not {getattr(self, name)!r}.")
        _whole("min_tokens", self.min_tokens, 0)
        for token in self.stop_token_ids:
            _whole("A token id in stop_token_ids", token, 0)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "stop", _texts("stop", self.stop))
        breakers = _texts("dry_sequence_breakers", self.dry_sequence_breakers)
        object.__setattr__(self, "dry_sequence_breakers", breakers)
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop`, always as a tuple."""
        return tuple(self.stop)

    @property
    def repeatable(self) -> bool:
        """Whether the same prompt must always get the same answer."""
        return self.temperature == 0 or self.seed is not None

    @property
    def penalizes(self) -> bool:
        """Whether tokens that were there before change the logits."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
            or self.dry_multiplier != 0
        )


def options_from(changes: Mapping[str, object]) -> Options:
    """Options from keyword arguments.

    Raises:
        InvalidOption: a name is unknown (the nearest is suggested), or a value is out of range.
    """
    known = [entry.name for entry in dataclasses.fields(Options)]
    for name in changes:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise InvalidOption(
                f"There is no option {name!r}.",
                hint=f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(known)}.",
            )
    return Options(**changes)  # type: ignore[arg-type]  # checked by Options itself


def _whole(name: str, value: object, low: int, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        also = ", or None" if optional else ""
        raise InvalidOption(f"{name} must be a whole number from {low}{also}, not {value!r}.")


def _number(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    """`above`: `low` itself is out of range."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        start = f"above {low}" if above else f"of at least {low}"
        end = "" if high == math.inf else f" and at most {high}"
        limits = "finite number" if low == -math.inf else f"number {start}{end}"
        raise InvalidOption(f"{name} must be a {limits}, not {value!r}.")


def _texts(name: str, value: object) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(t, str) and t for t in texts):
        raise InvalidOption(f"{name} must be texts that are not empty, not {value!r}.")
    return tuple(texts)


def _biases(biases: object) -> dict[int, float]:
    if not isinstance(biases, Mapping):
        raise InvalidOption(f"logit_bias must map token ids to numbers, not {biases!r}.")
    for token, bias in biases.items():
        _whole("A token id in logit_bias", token, 0)
        if bias != -math.inf:
            _number(f"logit_bias[{token}]", bias, -math.inf, math.inf)
    return dict(biases)
