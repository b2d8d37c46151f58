"""Learns which parameters of a request an endpoint's model does not take."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from edgesdk.hybrid.cloud.endpoint import Cloud, MaxTokensField
from edgesdk.hybrid.cloud.refusal import Refusal

_MAX_TOKENS: tuple[MaxTokensField, ...] = ("max_tokens", "max_completion_tokens")
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
