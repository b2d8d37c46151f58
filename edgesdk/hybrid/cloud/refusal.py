"""Reads why an endpoint gave no answer: error bodies in their many shapes, and how long to wait.

RFC 9110, section 10.2.3 (Retry-After); google.rpc.RetryInfo; the error objects of OpenAI,
Anthropic, Google, Mistral and FastAPI.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from edgesdk.errors import CloudBroken, CloudBusy, CloudError, CloudRefused
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.wire import InvalidChunk, parse_json
from edgesdk.hybrid.content import is_data

_MAX_MESSAGE = 300
# Who asks for more than this has made a mistake, or will be asked by another process by then.
_MAX_RETRY_AFTER = 6 * 3600.0
_BUSY_STATUSES = (408, 409, 425, 429)
_OUT_OF_MONEY = re.compile(
    r"insufficient[ _](user[ _])?(quota|balance|credit|fund)|billing[ _](hard[ _])?limit"
    r"|exceeded your current quota|credit balance is too low|out of credits",
    re.IGNORECASE,
)
# What is not in one of these is neither, so the reply counts as broken.
_BUSY_WORDS = re.compile(
    r"overloaded|rate.?limit|too.?many|unavailable|server.?error|api_error|internal|time.?out"
    r"|capacity|resource_exhausted|busy",
    re.IGNORECASE,
)
_REFUSED_WORDS = re.compile(
    r"invalid_request|authentication|permission|not_found|context_length|billing|forbidden"
    r"|unauthorized|unsupported|invalid_argument",
    re.IGNORECASE,
)
_TRY_AGAIN = re.compile(
    r"(?:try again|retry) (?:in|after) (?:(\d+)m(?!s))?\s*(?:(\d+(?:\.\d+)?)\s*(ms|s\b|sec))?",
    re.IGNORECASE,
)
_KEYS = re.compile(
    r"(?i)bearer\s+\S+|\b(?:sk|pk|gsk|csk|xai|hf|nvapi|fw|r8)[-_][\w*.\-]{6,}|\bAIza[\w*\-]{8,}"
)
_VOCABULARY = ("role", "type", "model", "stream", "stream_options")
_WORD = re.compile(r"[^\W_][\w@.+\-/]*[^\W_]|[^\W_]")
_HIDDEN = "[...]"


@dataclass(frozen=True)
class Refusal:
    """What an error body says.

    Attributes:
        code: its own word for the reason.
        parameter: of the request that it does not like.
        retry_after: seconds.
        status: that the body gives, as errors within a stream do.
    """

    message: str = ""
    code: str | None = None
    parameter: str | None = None
    retry_after: float | None = None
    status: int | None = None

    @property
    def out_of_money(self) -> bool:
        """Whether the account has nothing left, so that waiting does not help."""
        if self.code is not None and _OUT_OF_MONEY.search(self.code):
            return True
        # Gemini says the same of a rate, but then says how long to wait.
        return self.retry_after is None and _OUT_OF_MONEY.search(self.message) is not None


def read_refusal(text: str) -> Refusal:
    """Read an error's body, whatever it is."""
    try:
        body = parse_json(text)
    except InvalidChunk:
        plain = " ".join(text.split())
        # Pages of gateways say no more than the status does.
        return Refusal("" if plain.startswith(("<", "{", "[")) else plain[: 4 * _MAX_MESSAGE])
    return refusal_of(body)


def refusal_of(body: Any) -> Refusal:
    """Read an error that is parsed already, in any of its common shapes."""
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, dict):
        return Refusal(_squeezed(body))
    error = body.get("error")
    if not isinstance(error, dict):
        error = {**body, "message": error} if isinstance(error, str) else body
    message = error.get("message") or error.get("msg")
    parameter = error.get("param")
    detail = error.get("detail") or error.get("errors")
    if message is None and isinstance(detail, list) and detail and isinstance(detail[0], dict):
        # FastAPI's form: where, and what is wrong there.
        place = detail[0].get("loc")
        parameter = str(place[-1]) if isinstance(place, list) and place else parameter
        message = detail[0].get("msg") or detail[0].get("message")
        error = {"code": detail[0].get("type"), **error}
    elif message is None:
        message = detail
    metadata = error.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("raw"), str):
        # OpenRouter passes on what the machine behind it said.
        message = f"{message}: {metadata['raw']}"
    found = _squeezed(body if message is None else message)
    codes = [error.get(name) for name in ("code", "type", "status")]
    numbers = [int(code) for code in map(str, codes) if re.fullmatch("[45][0-9][0-9]", code)]
    words = [code for code in codes if isinstance(code, str) and not code.isdecimal()]
    # The first code is the closest: "insufficient_quota" before "invalid_request_error".
    code = words[0][:64] if words else None
    parameter = parameter if isinstance(parameter, str) else None
    return Refusal(found, code, parameter, _asked_to_wait(error, found), next(iter(numbers), None))


def error_for_status(
    cloud: Cloud, status: int, headers: Mapping[str, str], refusal: Refusal, sent: Mapping[str, Any]
) -> CloudError:
    """Make the error for a response that is no answer. What was `sent` must not come back in it."""
    if 300 <= status < 400:
        return CloudRefused(
            f"{cloud.name} redirects; neither the key nor the prompt is sent on.",
            endpoint=cloud.name,
            status=status,
            hint="Give the final address as base_url.",
        )
    wait = retry_after_of(headers)
    wait = refusal.retry_after if wait is None else wait
    busy = (status in _BUSY_STATUSES or status >= 500) and status != 501
    kind = CloudBusy if busy and not refusal.out_of_money else CloudRefused
    reason = hide_quotes(refusal.message, cloud, sent)
    hint = "Check the key." if status in (401, 403) else None
    if refusal.out_of_money:
        hint = "Check the account's balance and limits."
    return kind(
        f"{cloud.name} answered {status}{_as_ending(reason)}.",
        endpoint=cloud.name,
        status=status,
        code=refusal.code,
        reason=reason or None,
        retry_after=wait,
        hint=hint,
    )


def error_in_band(cloud: Cloud, refusal: Refusal, sent: Mapping[str, Any]) -> CloudError:
    """Make the error for one that came within a stream, whose HTTP status was good."""
    words = f"{refusal.code or ''} {refusal.message}"
    kind: type[CloudError] = CloudBroken
    if refusal.out_of_money:
        kind = CloudRefused
    elif refusal.status is not None:
        busy = refusal.status in _BUSY_STATUSES or refusal.status >= 500
        kind = CloudBusy if busy else CloudRefused
    elif _BUSY_WORDS.search(words):
        kind = CloudBusy
    elif _REFUSED_WORDS.search(refusal.code or ""):
        kind = CloudRefused
    reason = hide_quotes(refusal.message, cloud, sent)
    return kind(
        f"{cloud.name} sent an error instead of the rest{_as_ending(reason)}.",
        endpoint=cloud.name,
        status=200,
        code=refusal.code,
        reason=reason or None,
        retry_after=refusal.retry_after,
    )


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Read how many seconds an endpoint wants to be left alone; None where it does not say."""
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _seconds(value)
    if seconds is not None or value is None:
        return seconds
    until, now = _date(value), _date(headers.get("date"))
    if until is None:
        return None
    # By the endpoint's own clock, because the device's may be wrong.
    wait = (until - (now or datetime.now(timezone.utc))).total_seconds()
    return min(max(wait, 0.0), _MAX_RETRY_AFTER)


def hide_quotes(message: str, cloud: Cloud, sent: Mapping[str, Any]) -> str:
    """Return what an endpoint said without secrets, and without what it quotes of the request.

    Words that the request has too are hidden where three of them follow each other, or two with a
    capital, or one that tells somebody or something apart: a number, an address, a name.
    """
    for secret in (cloud.api_key, *cloud.headers.values()):
        if secret and len(secret) >= 6:
            message = message.replace(secret, _HIDDEN)
    message = _KEYS.sub(_HIDDEN, message)
    texts = list(_texts_in(sent))
    request = _words(" ".join(texts))
    for text in texts:
        whole = " ".join(text.split())
        if 4 <= len(whole) <= len(message):
            message = re.sub(rf"(?<!\w){re.escape(whole)}(?!\w)", _HIDDEN, message)
    words = list(_WORD.finditer(message))
    pieces: list[str] = []
    copied = at = 0
    while at < len(words):
        end = at
        while end < len(words) and f" {_joined(words[at : end + 1])} " in request:
            end += 1
        run = words[at:end]
        if _tells_apart([word[0] for word in run], first=at == 0):
            pieces += [message[copied : run[0].start()], _HIDDEN]
            copied = run[-1].end()
        at = max(end, at + 1)
    return "".join((*pieces, message[copied:]))[:_MAX_MESSAGE]


def _tells_apart(run: list[str], *, first: bool) -> bool:
    if len(run) >= 3 or (len(run) == 2 and any(word != word.lower() for word in run)):
        return True
    return any(
        any(sign.isdigit() or sign == "@" for sign in word)
        or not word.isascii()
        or (word != word.lower() and len(word) > 3 and not first)
        for word in run
    )


def _texts_in(value: Any) -> Iterator[str]:
    """Iterate the texts of a request that may be private: neither the vocabulary of the API nor
    the bytes of pictures."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _VOCABULARY and not is_data(key, item):
                yield from _texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts_in(item)


def _words(text: str) -> str:
    return f" {_joined(list(_WORD.finditer(text)))} "


def _joined(words: list[re.Match[str]]) -> str:
    return " ".join(word[0].casefold() for word in words)


def _as_ending(reason: str) -> str:
    return f": {reason.rstrip('. ')}" if reason.rstrip(". ") else ""


def _squeezed(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    # Enough to hide what it quotes before it is cut.
    return " ".join(text.split())[: 4 * _MAX_MESSAGE]


def _asked_to_wait(error: Mapping[str, Any], message: str) -> float | None:
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and isinstance(detail.get("retryDelay"), str):
            return _seconds(detail["retryDelay"].removesuffix("s"))
    written = error.get("retry_after")
    if type(written) in (int, float):
        return _seconds(str(written))
    found = _TRY_AGAIN.search(message)
    if found is None or not (found[1] or found[2]):
        return None
    parts = float(found[2] or 0) / (1000 if found[3] == "ms" else 1)
    return min(60.0 * float(found[1] or 0) + parts, _MAX_RETRY_AFTER)


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER) if math.isfinite(seconds) else None


def _date(value: str | None) -> datetime | None:
    try:
        found = parsedate_to_datetime(value or "")
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)
