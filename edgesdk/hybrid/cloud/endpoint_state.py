"""What a client learns of an endpoint: whether it may be asked, and which parameters it takes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from time import monotonic
from typing import Any, get_args

import httpx

from edgesdk.hybrid.cloud.endpoint import Cloud, MaxTokensField
from edgesdk.hybrid.cloud.refusal import Refusal

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
_FULL, _PER_SUCCESS = 10.0, 0.1


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
        self._tokens = _FULL

    @property
    def exhausted(self) -> bool:
        """Whether nothing may be retried for now."""
        return self._tokens <= _FULL / 2

    def succeed(self) -> None:
        """An attempt succeeded."""
        self._tokens = min(self._tokens + _PER_SUCCESS, _FULL)

    def fail(self) -> None:
        """An attempt failed."""
        self._tokens = max(self._tokens - 1, 0.0)


_MAX_TOKENS: tuple[MaxTokensField, ...] = get_args(MaxTokensField)
# Without these a request still says what is wanted. Where a model refuses two that exclude each
# other, the first of them goes.
_OPTIONAL = ("stream_options", "seed", "top_p", "temperature", "parallel_tool_calls")
_REFUSED = (400, 422)
# OpenAI's words, and those of Anthropic, Google, Mistral, Groq, Cerebras, Moonshot and vLLM.
_UNSUPPORTED = re.compile(
    r"unsupported|not supported|(?:does|do) not support|unknown|unrecogni[sz]ed|unexpected"
    r"|extra inputs|extra_forbidden|not permitted|cannot find field|not allowed|not available"
    r"|deprecated|cannot both|only one of|incompatible|only .{0,40}(?:allowed|supported)"
    r"|may only be|must be (?:1|greater|strictly)",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(r"too large|at most|exceed|less than|maximum context", re.IGNORECASE)
_LOG = logging.getLogger("edgesdk.hybrid")


class Parameters:
    """Writes requests as one endpoint's model takes them, and learns that from its refusals.

    What is learned holds as long as this does, so each refusal is met once. Not for several
    threads.
    """

    def __init__(self, cloud: Cloud) -> None:
        self._max_tokens: MaxTokensField = cloud.max_tokens_field or "max_tokens"
        self._renamed = False
        self._omitted = set(cloud.omit)
        self._name = cloud.name

    def adapt(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request as the endpoint takes it."""
        adapted = {
            self._max_tokens if name in _MAX_TOKENS else name: value for name, value in body.items()
        }
        return {name: value for name, value in adapted.items() if name not in self._omitted}

    def learn(self, status: int, refusal: Refusal, sent: Mapping[str, Any]) -> bool:
        """Learn from a refusal. Return whether the request would now be another one.

        Args:
            sent: what was refused.
        """
        if status not in _REFUSED:
            return False
        said = f"{refusal.message} {refusal.code or ''}"
        if not _UNSUPPORTED.search(said):
            return False
        name = self._max_tokens
        if name in sent and _names(refusal, name) and not _TOO_LARGE.search(refusal.message):
            if self._renamed:
                return False
            self._renamed = True
            self._max_tokens = next(other for other in _MAX_TOKENS if other != name)
            learned = f"{self._max_tokens} in place of {name}"
        else:
            optional = [each for each in _OPTIONAL if each in sent and _names(refusal, each)]
            if not optional:
                return False
            self._omitted.add(optional[0])
            learned = f"no {optional[0]}"
        _LOG.info("%s takes %s; it is asked so from now on", self._name, learned)
        return True


def _names(refusal: Refusal, parameter: str) -> bool:
    if refusal.parameter is not None:
        return refusal.parameter.rpartition(".")[2] == parameter
    return re.search(rf"(?<!\w){parameter}(?!\w)", refusal.message) is not None


class EndpointState:
    """An endpoint, what sends requests to it, and what was learned of it.

    Args:
        http: must not follow redirects.
    """

    def __init__(self, cloud: Cloud, http: httpx.AsyncClient) -> None:
        self.cloud = cloud
        self.http = http
        self.breaker = CircuitBreaker()
        self.parameters = Parameters(cloud)
