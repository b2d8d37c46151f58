"""Decides whether an endpoint may be asked, and whether a request may be retried."""

from __future__ import annotations

from time import monotonic

# A circuit breaker (Nygard, "Release It!", chapter 5): after so many failures in a row an endpoint
# rests; then a single request tries whether it is back.
_FAILURES = 3
_FIRST_REST, _LONGEST_REST = 5.0, 60.0
# gRPC proposal A6, "Retry throttling": a failure costs 1, a success gives a tenth back, and there
# are retries only while more than half is left.
_TOKENS, _GAIN = 10.0, 0.1


class CircuitBreaker:
    """What is known of one endpoint. Not for several threads."""

    def __init__(self) -> None:
        self._failures = 0
        self._rest = _FIRST_REST
        self._until = 0.0
        self._probing = False
        self.last_error: Exception | None = None

    @property
    def rests_for(self) -> float:
        """Seconds until it may be asked; 0 where that is now."""
        if self._probing:
            return self._rest
        return max(self._until - monotonic(), 0.0)

    def asked(self) -> None:
        """A request goes out. `answered`, `failed` or `left` must follow."""
        self._probing = self._failures >= _FAILURES

    def answered(self) -> None:
        """It gave an answer."""
        self._failures, self._rest, self._until = 0, _FIRST_REST, 0.0
        self._probing = False

    def failed(self, error: Exception, *, wait: float | None = None) -> None:
        """It gave none; `wait` is how many seconds it wants to be left alone."""
        self.last_error = error
        self._failures += 1
        self._probing = False
        if self._failures >= _FAILURES:
            self._until = monotonic() + self._rest
            self._rest = min(2 * self._rest, _LONGEST_REST)
        if wait is not None:
            self._until = max(self._until, monotonic() + wait)

    def left(self) -> None:
        """The request ended without telling anything about the endpoint."""
        self._probing = False


class RetryBudget:
    """Keeps retries from multiplying the load of endpoints that are down already."""

    def __init__(self) -> None:
        self._tokens = _TOKENS

    @property
    def spent(self) -> bool:
        """Whether nothing may be tried again for now."""
        return self._tokens <= _TOKENS / 2

    def failed(self) -> None:
        """An attempt failed."""
        self._tokens = max(self._tokens - 1, 0.0)

    def answered(self) -> None:
        """An attempt succeeded."""
        self._tokens = min(self._tokens + _GAIN, _TOKENS)
