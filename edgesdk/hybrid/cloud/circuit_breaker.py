"""Decides whether an endpoint may be asked, and whether a request may be retried."""

from __future__ import annotations

from time import monotonic

# Nygard, "Release It!", chapter 5: after so many failures in a row the circuit opens for a while;
# then a single request tries whether the endpoint is back.
_MAX_FAILURES = 3
# Two such times are 10 s, after which an endpoint that is back has been tried, even where requests
# come no more often than that.
_MIN_OPEN_SECONDS, _MAX_OPEN_SECONDS = 1.0, 5.0
# What the request that tries may take to its first token, while another endpoint could be asked.
_MIN_PROBE_SECONDS = 3.0
# gRPC proposal A6, "Retry throttling": a failure costs 1, a success gives a tenth back, and there
# are retries only while more than half is left.
_MAX_TOKENS, _TOKENS_PER_SUCCESS = 10.0, 0.1


class CircuitBreaker:
    """Keeps requests from an endpoint that keeps failing. Not for several threads.

    `begin` must be followed by one of `succeed`, `fail` and `abandon`.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._open_seconds = _MIN_OPEN_SECONDS
        self._open_until = 0.0
        self._half_open = False
        self._usual = 0.0
        self.last_error: Exception | None = None

    @property
    def open_for(self) -> float:
        """Seconds until the endpoint may be asked; 0 where that is now."""
        if self._half_open:
            return self._open_seconds
        return max(self._open_until - monotonic(), 0.0)

    @property
    def probe_seconds(self) -> float | None:
        """How long the next request may take to its first token, where it is the one that tries
        whether the endpoint is back: twice what it usually took. None where it is not."""
        if self._failures < _MAX_FAILURES:
            return None
        return max(_MIN_PROBE_SECONDS, 2 * self._usual)

    def begin(self) -> None:
        """A request goes out."""
        self._half_open = self._failures >= _MAX_FAILURES

    def succeed(self, first_token: float | None = None) -> None:
        """The request was answered, after so many seconds to the first token."""
        self._failures, self._open_seconds, self._open_until = 0, _MIN_OPEN_SECONDS, 0.0
        self._half_open = False
        self._usual = first_token or self._usual

    def fail(self, error: Exception, *, retry_after: float | None = None) -> None:
        """The request failed; the endpoint may want to be left alone for some seconds."""
        self.last_error = error
        self._failures += 1
        self._half_open = False
        if self._failures >= _MAX_FAILURES:
            self._open_until = monotonic() + self._open_seconds
            self._open_seconds = min(2 * self._open_seconds, _MAX_OPEN_SECONDS)
        if retry_after is not None:
            self._open_until = max(self._open_until, monotonic() + retry_after)

    def abandon(self) -> None:
        """The request ended without telling anything about the endpoint."""
        self._half_open = False


class RetryBudget:
    """Keeps retries from multiplying the load of endpoints that are down already."""

    def __init__(self) -> None:
        self._tokens = _MAX_TOKENS

    @property
    def exhausted(self) -> bool:
        """Whether nothing may be retried for now."""
        return self._tokens <= _MAX_TOKENS / 2

    def succeed(self) -> None:
        """An attempt succeeded."""
        self._tokens = min(self._tokens + _TOKENS_PER_SUCCESS, _MAX_TOKENS)

    def fail(self) -> None:
        """An attempt failed."""
        self._tokens = max(self._tokens - 1, 0.0)
