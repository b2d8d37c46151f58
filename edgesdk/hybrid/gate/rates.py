"""How fast the device really is with this model, learned from the answers that it gave."""

from __future__ import annotations

import statistics
import threading
from collections import deque

from edgesdk.errors import InvalidOption
from edgesdk.receipt import Receipt

# Enough for a median that one busy moment does not sway, few enough to notice a slow hour.
_MEASURED = 9
# Shorter prompts and answers measure the overhead of a call rather than a rate.
_LEAST_PROMPT, _LEAST_STEPS = 32, 4


class Rates:
    """Medians of the last answers. Several threads and clients of one model may share one.

    Args:
        decode: tokens per second before anything is measured, such as
            `edgesdk.Plan.tokens_per_second`, which is a bound from above: what it says is too
            slow is too slow. None for unknown.

    Raises:
        InvalidOption: a rate is not above 0.
    """

    def __init__(self, *, decode: float | None = None) -> None:
        if decode is not None and not decode > 0:
            raise InvalidOption(f"A rate must be above 0, not {decode}.")
        self._guard = threading.Lock()
        self._known = decode
        self._prefill: deque[float] = deque(maxlen=_MEASURED)
        self._decode: deque[float] = deque(maxlen=_MEASURED)
        self._lengths: deque[int] = deque(maxlen=_MEASURED)

    def learn(self, receipt: Receipt) -> None:
        """One more answer. Waiting for other answers is not in its times; rests are."""
        computed = receipt.prompt_tokens - receipt.cached_tokens
        with self._guard:
            if computed >= _LEAST_PROMPT and receipt.prefill_seconds > 0:
                self._prefill.append(computed / receipt.prefill_seconds)
            # The end token is a step that is no output, so this is a little too slow at worst.
            steps = receipt.output_tokens - 1
            if steps >= _LEAST_STEPS and receipt.decode_seconds > 0:
                self._decode.append(steps / receipt.decode_seconds)
            # What was given up half-way says nothing of how long it would have been.
            if receipt.finish_reason != "cancelled" and receipt.output_tokens:
                self._lengths.append(receipt.output_tokens)

    def doubt(self) -> None:
        """Forget the oldest measurements: the device was turned down for its slowness, and must
        get another chance, because only answers measure it."""
        with self._guard:
            for measured in (self._prefill, self._decode):
                if measured:
                    measured.popleft()

    @property
    def length(self) -> int | None:
        """Tokens that an answer has; None before the first."""
        with self._guard:
            return round(statistics.median(self._lengths)) if self._lengths else None

    def seconds(self, prompt_tokens: int, output_tokens: int) -> float | None:
        """What an answer would take; None where no rate is known. A prefill whose rate is not
        known counts as nothing."""
        with self._guard:
            decode = statistics.median(self._decode) if self._decode else self._known
            prefill = statistics.median(self._prefill) if self._prefill else None
        if decode is None and prefill is None:
            return None
        reading = prompt_tokens / prefill if prefill else 0.0
        return reading + (output_tokens / decode if decode else 0.0)
