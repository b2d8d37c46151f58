"""Describes an OpenAI-compatible endpoint, and how long it may take."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from edgesdk.errors import InvalidOption
from edgesdk.system.checks import is_loopback


@dataclass(frozen=True)
class Timeouts:
    """Seconds that the stages of one attempt may take.

    Attributes:
        connect: until the connection stands, name lookup and TLS included.
        first_token: from then to the first token of the reply.
        between_tokens: from one token to the next; bytes that make no token do not count.
    """

    connect: float = 5.0
    first_token: float = 30.0
    between_tokens: float = 15.0

    def __post_init__(self) -> None:
        for name in ("connect", "first_token", "between_tokens"):
            if not getattr(self, name) > 0:
                raise InvalidOption(f"{name} must be more than 0 seconds.")


@dataclass(frozen=True)
class Cloud:
    """One OpenAI-compatible endpoint.

    Attributes:
        base_url: up to and with the version, as "https://api.openai.com/v1".
        model: its name there.
        api_key: sent as a bearer token, to this host only; never shown.
        headers: sent along.
        timeouts: of one attempt.
        input_price, output_price: per million tokens, in the currency of the app's budget.
        max_output_tokens: that a reply may have where the caller sets no limit.

    Raises:
        InvalidOption: the URL is none, or would send the key in the clear to another machine.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    timeouts: Timeouts = field(default_factory=Timeouts)
    input_price: float = 0.0
    output_price: float = 0.0
    max_output_tokens: int = 4096

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidOption(
                f"{self.base_url!r} is no base URL.", hint="It looks like https://host/v1."
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InvalidOption(
                "A base URL has no password, query or fragment.", hint="Give the key as api_key."
            )
        if parts.scheme == "http" and self.api_key and not is_loopback(parts.hostname):
            raise InvalidOption(
                f"The key would go to {parts.hostname} unencrypted.", hint="Use https."
            )
        for price in (self.input_price, self.output_price):
            if not 0 <= price < math.inf:
                raise InvalidOption(f"A price must be a number from 0, not {price}.")
        if self.max_output_tokens < 1:
            raise InvalidOption("max_output_tokens must not be under 1.")

    @property
    def name(self) -> str:
        """Model and host, for messages and receipts."""
        return f"{self.model} at {urlsplit(self.base_url).netloc}"

    @property
    def chat_url(self) -> str:
        """The address of chat completions."""
        return f"{self.base_url.rstrip('/')}/chat/completions"
