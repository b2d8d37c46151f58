"""Measure how fast a loaded model reads prompts and writes answers, as llama-bench does.

A run reads so many tokens at once (prefill), or writes so many one by one (decode), after so many
that are in the KV cache already (depth). The tokens are drawn, and nothing is sampled: the engine
alone is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from edgesdk.engines.base import DecodeState
from edgesdk.errors import InvalidOption
from edgesdk.generation.prefill import prefill
from edgesdk.model import Model

_SEED = 0


@dataclass(frozen=True)
class SpeedTest:
    """What one run does: read `num_prompt` tokens, or write `num_generated`, after `depth`."""

    num_prompt: int
    num_generated: int
    depth: int

    @property
    def name(self) -> str:
        """As llama-bench has it, as "pp512 @ d1024"."""
        kind = f"pp{self.num_prompt}" if self.num_prompt else f"tg{self.num_generated}"
        return f"{kind} @ d{self.depth}" if self.depth else kind

    @property
    def num_tokens(self) -> int:
        """How many tokens are timed."""
        return self.num_prompt or self.num_generated


@dataclass(frozen=True)
class SpeedResult:
    """The seconds that each repetition of a test took."""

    test: SpeedTest
    seconds: tuple[float, ...]

    @property
    def speeds(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [self.test.num_tokens / seconds for seconds in self.seconds]

    @property
    def mean(self) -> float:
        """Mean of the speeds; `deviation` is their standard deviation."""
        return statistics.fmean(self.speeds)

    @property
    def deviation(self) -> float:
        """Standard deviation of the speeds; 0 for one alone."""
        return statistics.stdev(self.speeds) if len(self.seconds) > 1 else 0.0

    def figures(self) -> dict[str, Any]:
        """The same by llama-bench's names, for JSON."""
        nanoseconds = [round(1e9 * seconds) for seconds in self.seconds]
        return {
            "n_prompt": self.test.num_prompt,
            "n_gen": self.test.num_generated,
            "n_depth": self.test.depth,
            "avg_ns": round(statistics.fmean(nanoseconds)),
            "stddev_ns": round(statistics.stdev(nanoseconds)) if len(nanoseconds) > 1 else 0,
            "avg_ts": self.mean,
            "stddev_ts": self.deviation,
            "samples_ns": nanoseconds,
            "samples_ts": self.speeds,
        }


def speed_tests(
    prompts: Sequence[int], generated: Sequence[int], depths: Sequence[int]
) -> list[SpeedTest]:
    """The tests of all lengths at each depth; a length of 0 is left out.

    Raises:
        InvalidOption: a length is negative, or nothing is left.
    """
    if min((*prompts, *generated, *depths), default=0) < 0:
        raise InvalidOption("A number of tokens is negative.")
    tests = [SpeedTest(n, 0, depth) for depth in depths for n in prompts if n]
    tests += [SpeedTest(0, n, depth) for depth in depths for n in generated if n]
    if not tests:
        raise InvalidOption("There is nothing to measure.", hint="Give lengths above 0.")
    return tests


def measure_speed(
    model: Model, tests: Sequence[SpeedTest], *, repetitions: int = 5
) -> Iterator[SpeedResult]:
    """Run tests one after the other, each once more beforehand, so that nothing is cold.

    Raises:
        InvalidOption: a test does not fit the model's context.
        EngineError: the engine failed.
    """
    info = model.runtime.engine.info
    for test in tests:
        if test.depth + test.num_tokens > info.context_length:
            raise InvalidOption(
                f"{test.name} needs {test.depth + test.num_tokens:,} tokens; the context holds"
                f" {info.context_length:,}."
            )
    random = np.random.default_rng(_SEED)
    for test in tests:
        tokens = random.integers(0, info.vocab_size, test.depth + test.num_tokens).tolist()
        state = model.runtime.engine.new_state()
        try:
            if test.depth:
                prefill(state, tokens[: test.depth])
            seconds = [_timed(state, test, tokens) for _ in range(repetitions + 1)]
        finally:
            state.close()
        yield SpeedResult(test, tuple(seconds[1:]))


def _timed(state: DecodeState, test: SpeedTest, tokens: list[int]) -> float:
    state.rewind(test.depth)
    begun = perf_counter()
    if test.num_prompt:
        prefill(state, tokens[test.depth :])
    else:
        for token in tokens[test.depth :]:
            state.extend([token])
    return perf_counter() - begun
