"""How an answer ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "repetition", "cancelled", "deadline"]


@dataclass(frozen=True)
class Finish:
    """How an answer ended, and what it took.

    Attributes:
        reason: "stop" (the model, a stop text or a constraint ended it), "length" (max_tokens, or
            the context was full), "repetition" (it went in a cycle, of which one turn is left; see
            `edgesdk.generation.repetition`), "cancelled" or "deadline".
        tokens: ids of the answer, the end token and what a cycle repeated left out.
        prompt_tokens: how many ids the prompt has, of which
        cached_tokens: so many were in the KV cache.
        prefill_seconds: time spent on the rest of the prompt.
        decode_seconds: time spent after the first token; the time between steps is not in it.
        decode_steps: tokens that were chosen in that time, the end token counted.
        time_to_first_token: seconds from the start to the first token, waiting included; None if
            none came.
        drafted_tokens: guesses that the model verified, of which
        accepted_tokens: so many were right.
        queue_seconds: time spent waiting while the engine worked for others; neither prefill nor
            decode has it.
        paused_seconds: time that a power policy rested; a part of prefill and decode.
        stop_text: of the request's stop texts the one that ended it, which is no part of the
            answer; None where none did.
        reasoning_tokens: how many of `tokens` are reasoning before the answer, its marks included.
        reasoning_seconds: time from its first token to its last.
        ended_in_reasoning: it ended before there was an answer, which is then empty.
    """

    reason: FinishReason
    tokens: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    prefill_seconds: float
    decode_seconds: float
    decode_steps: int
    time_to_first_token: float | None
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    queue_seconds: float = 0.0
    paused_seconds: float = 0.0
    stop_text: str | None = None
    reasoning_tokens: int = 0
    reasoning_seconds: float = 0.0
    ended_in_reasoning: bool = False
