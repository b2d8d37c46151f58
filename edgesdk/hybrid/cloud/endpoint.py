"""Describes an OpenAI-compatible endpoint; presets.toml has those that are known by name."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import ssl
import sys
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import httpx
from typing_extensions import Self

from edgesdk.errors import InvalidOption
from edgesdk.system.checks import checked_choice, is_loopback

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MaxTokensField = Literal["max_tokens", "max_completion_tokens"]


@dataclass(frozen=True)
class Preset:
    """An endpoint that is known by name.

    Attributes:
        base_url: with "{}" for what `url_env` holds, where each customer has an address.
        key_env: environment variable with the key; None where no key is needed.
        url_env: environment variable with the customer's address.
        max_tokens_field: what the limit of a reply is called; None for "max_tokens".
        prices: the provider's id in genai-prices; None where that does not have it.
        free: it costs nothing, because it runs on machines of one's own.
        source: a public page that says so.
        checked: the date when it was read, as "2026-11-30".
    """

    name: str
    base_url: str
    source: str
    checked: str
    key_env: str | None = None
    url_env: str | None = None
    max_tokens_field: MaxTokensField | None = None
    prices: str | None = None
    free: bool = False

    def address(self) -> str:
        """The base URL, with the customer's part from the environment."""
        if self.url_env is None:
            return self.base_url
        own = os.environ.get(self.url_env, "").strip().rstrip("/")
        if not own:
            raise InvalidOption(
                f"{self.name} has an address for each customer.",
                hint=f"Set {self.url_env}, or give base_url.",
            )
        return self.base_url.format(own)

    def key(self) -> str | None:
        """The key from the environment; None where none is needed."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise InvalidOption(
                f"{self.name} needs a key.", hint=f"Give api_key, or set {self.key_env}."
            )
        return key


def preset_names() -> tuple[str, ...]:
    """The names of all presets."""
    return tuple(_presets())


def find_preset(name: str) -> Preset:
    """Return the preset of this name."""
    return _presets()[checked_choice("The preset", name, preset_names())]


def price_of(preset: Preset, model: str) -> tuple[float, float] | None:
    """Look up what a million tokens of prompt and of reply cost, in US dollars.

    None where genai-prices is not installed or does not know the model. Its prices are those that
    providers publish, and may be late: what counts is the provider's bill.
    """
    if preset.free:
        return 0.0, 0.0
    if preset.prices is None:
        return None
    try:
        from genai_prices import Usage, calc_price
    except ImportError:
        return None
    try:
        found = calc_price(
            Usage(input_tokens=1_000, output_tokens=1_000), model, provider_id=preset.prices
        )
    except LookupError:
        return None
    return float(found.input_price) * 1_000, float(found.output_price) * 1_000


@cache
def _presets() -> dict[str, Preset]:
    text = files(__package__).joinpath("presets.toml").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = tomllib.loads(text)
    return {name: Preset(name=name, **values) for name, values in table.items()}


_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
# RFC 9110, section 5.5, without the bytes above ASCII, which endpoints read differently.
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?")
_SECRET_HEADERS = ("authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie")
# A preset's name and a model, as "groq:llama-3.3-70b-versatile"; an address has slashes there.
_PRESET_MODEL = re.compile(r"([a-z][a-z0-9-]*):(?!//)(.+)", re.DOTALL)


@dataclass(frozen=True)
class Timeouts:
    """Seconds that the stages of one attempt may take.

    A request's deadline goes before: while another endpoint could be asked, an attempt gets an even
    share of what is left of it.

    Attributes:
        connect: until the connection stands, name lookup and TLS included.
        first_token: from the request to the first token of the reply. None for 10 while another
            endpoint could be asked, and 30 for the last one.
        between_tokens: from one token to the next; bytes that make no token do not count. None for
            8 while another endpoint could be asked, and 15 for the last one.

    Raises:
        InvalidOption: one is not above 0.
    """

    connect: float = 5.0
    first_token: float | None = None
    between_tokens: float | None = None

    def __post_init__(self) -> None:
        for name in ("connect", "first_token", "between_tokens"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds > 0:
                raise InvalidOption(f"{name} must be more than 0 seconds.")

    def until_first_token(self, *, last: bool) -> float:
        """Seconds to the first token, of the last endpoint that could be asked or of another."""
        return self.first_token or (30.0 if last else 10.0)

    def until_next_token(self, *, last: bool) -> float:
        """Seconds to the next token; likewise."""
        return self.between_tokens or (15.0 if last else 8.0)


@dataclass(frozen=True)
class Cloud:
    """One OpenAI-compatible endpoint.

    `Cloud("groq:llama-3.3-70b-versatile")` stands for a preset and a model there: the address, the
    name of the key's environment variable and the parameters that it takes come from
    `edgesdk/hybrid/cloud/presets.toml`, prices from the package genai-prices where it is installed
    (`pip install 'edgesdk[prices]'`) and none are given.

    Attributes:
        base_url: up to and with the version, as "https://api.openai.com/v1"; or a preset and a
            model, as above.
        model: its name there.
        api_key: sent as a bearer token, to this host only; never shown.
        headers: sent along, in place of the SDK's where the names are the same.
        timeouts: of one attempt.
        input_price, output_price: per million tokens, in the currency of the app's budget; 0 where
            it costs nothing. None where it is not known, and then no limit of money can hold.
        max_output_tokens: that a reply may have where the caller sets no limit.
        max_tokens_field: what that limit is called there; None for "max_tokens". An endpoint that
            refuses the one is asked with the other, and so from then on.
        omit: parameters that the model does not take, such as "temperature". Those of them that say
            less than the messages are learned from the endpoint's refusal too.
        verify: certificates to trust: True for those of the environment's SSL_CERT_FILE and
            SSL_CERT_DIR, else certifi's; a file or folder of them; an `ssl.SSLContext`; False for
            any, which is for tests.
        proxy: URL of an HTTP proxy; those of the environment are not used.

    Raises:
        InvalidOption: the URL is none, would send the key in the clear to another machine, or
            another value is of no use.
    """

    base_url: str
    model: str = ""
    api_key: str | None = field(default=None, repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    timeouts: Timeouts = field(default_factory=Timeouts)
    input_price: float | None = None
    output_price: float | None = None
    max_output_tokens: int = 4096
    max_tokens_field: MaxTokensField | None = None
    omit: tuple[str, ...] = ()
    verify: bool | str | Path | ssl.SSLContext = field(default=True, repr=False)
    proxy: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        found = _PRESET_MODEL.fullmatch(self.base_url)
        if not self.model and found is not None:
            self._take_preset(found[1], found[2])
        if self.api_key is not None:
            object.__setattr__(self, "api_key", self.api_key.strip())
        self._check_address()
        self._check_headers()
        for price in (self.input_price, self.output_price):
            if price is not None and not 0 <= price < math.inf:
                raise InvalidOption(f"A price must be a number from 0, not {price}.")
        if self.max_output_tokens < 1:
            raise InvalidOption("max_output_tokens must not be under 1.")
        if self.max_tokens_field is not None:
            checked_choice("max_tokens_field", self.max_tokens_field, get_args(MaxTokensField))
        if isinstance(self.omit, str):
            raise InvalidOption("omit is a list of names, not one text.")
        object.__setattr__(self, "omit", tuple(self.omit))
        if isinstance(self.verify, str | Path) and not Path(self.verify).exists():
            raise InvalidOption(f"verify names {self.verify}, which does not exist.")
        self._check_proxy()

    @classmethod
    def preset(cls, name: str, model: str, api_key: str | None = None, **changes: Any) -> Self:
        """The endpoint of a preset, such as `Cloud.preset("groq", model="llama-3.3-70b")`.

        Args:
            name: see `edgesdk.hybrid.cloud.endpoint.preset_names`.
            api_key: None for what the preset's environment variable holds.
            changes: other fields, in place of the preset's.

        Raises:
            InvalidOption: there is no such preset, it needs a key or an address of its own, or a
                field is of no use.
        """
        found = find_preset(name)
        given = {key: value for key, value in changes.items() if value is not None}
        if "base_url" not in given:
            given["base_url"] = found.address()
        given["api_key"] = api_key or found.key()
        given.setdefault("max_tokens_field", found.max_tokens_field)
        if "input_price" not in given and "output_price" not in given:
            prices = price_of(found, model)
            if prices is not None:
                given["input_price"], given["output_price"] = prices
        return cls(model=model, **given)

    @property
    def name(self) -> str:
        """Model and host, for messages and receipts."""
        return f"{self.model} at {httpx.URL(self.base_url).netloc.decode('ascii')}"

    @property
    def chat_url(self) -> str:
        """The address of chat completions."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    @property
    def completions_url(self) -> str:
        """The address of text completions."""
        return f"{self.base_url.rstrip('/')}/completions"

    def _take_preset(self, name: str, model: str) -> None:
        defaults = Cloud("http://localhost/v1", "m")
        given = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.name not in ("base_url", "model", "api_key")
            and getattr(self, each.name) != getattr(defaults, each.name)
        }
        made = Cloud.preset(name, model, self.api_key, **given)
        for each in fields(self):
            object.__setattr__(self, each.name, getattr(made, each.name))

    def _check_address(self) -> None:
        if not self.model.strip():
            raise InvalidOption(
                f"There is no model for {self.base_url!r}.",
                hint="Name it as there, or use a preset as in Cloud('groq:llama-3.3-70b').",
            )
        try:
            url = httpx.URL(self.base_url)
        except (httpx.InvalidURL, ValueError, TypeError) as error:
            raise InvalidOption(f"{self.base_url!r} is no base URL: {error}.") from None
        if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65_535:
            raise InvalidOption(
                f"{self.base_url!r} is no base URL.", hint="It looks like https://host/v1."
            )
        if url.userinfo or url.query or url.fragment:
            raise InvalidOption(
                "A base URL has no password, query or fragment.", hint="Give the key as api_key."
            )
        secret = self.api_key or any(name.lower() in _SECRET_HEADERS for name in self.headers)
        if url.scheme == "http" and secret and not is_loopback(url.host):
            raise InvalidOption(f"The key would go to {url.host} unencrypted.", hint="Use https.")

    def _check_headers(self) -> None:
        if self.api_key is not None and not _HEADER_VALUE.fullmatch(self.api_key):
            raise InvalidOption(
                "The key is empty, or has a character that a key cannot have.",
                hint="Copy it again; only the key, in ASCII.",
            )
        for name, value in self.headers.items():
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise InvalidOption(f"{name!r} or its value is no HTTP header.")
            if name.lower() in ("content-length", "transfer-encoding", "host"):
                raise InvalidOption(f"The header {name!r} is not for the app to set.")

    def _check_proxy(self) -> None:
        if self.proxy is None:
            return
        try:
            scheme = httpx.Proxy(self.proxy).url.scheme
        except (httpx.InvalidURL, ValueError, TypeError):
            # Without the URL, which may have a password.
            raise InvalidOption(
                "proxy is no URL of a proxy.", hint="It looks like http://host:8080."
            ) from None
        if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            raise InvalidOption("A SOCKS proxy needs a package: pip install 'httpx[socks]'.")
