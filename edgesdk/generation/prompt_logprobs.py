"""Read a prompt token by token, with the log-probability of each, as an evaluation wants it."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence

from edgesdk.engines.base import DecodeState
from edgesdk.generation.loop import Step
from edgesdk.generation.sampling import log_probability, top_log_probabilities
from edgesdk.text.tokenizer import Tokenizer

# Logits of a vocabulary of 150,000 take 40 MB for so many tokens.
_CHUNK = 64


def prompt_steps(
    state: DecodeState,
    prompt: Sequence[int],
    tokenizer: Tokenizer,
    *,
    logprobs: bool,
    top_logprobs: int = 0,
) -> Iterator[Step]:
    """The tokens of a prompt as steps; nothing tells the first one's log-probability.

    Args:
        state: holds the prompt but for its last token afterwards, where `logprobs` is true.

    Raises:
        EngineError, Cancelled: see `DecodeState.extend`.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def text(token: int) -> str:
        return decoder.decode(tokenizer.token_bytes(token))

    yield Step(prompt[0], text(prompt[0]), None)
    if not logprobs:
        yield from (Step(token, text(token), None) for token in prompt[1:])
        return
    state.rewind(0)
    for start in range(0, len(prompt) - 1, _CHUNK):
        read = prompt[start : min(start + _CHUNK, len(prompt) - 1)]
        rows = state.extend(read, logits="all")
        for row, token in zip(rows, prompt[start + 1 : start + 1 + len(read)], strict=True):
            likeliest = top_log_probabilities(row, top_logprobs)
            yield Step(token, text(token), log_probability(row, token), likeliest)
