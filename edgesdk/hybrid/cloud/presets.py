"""Endpoints that are known by name: their addresses, and what they take. See presets.toml."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from edgesdk.errors import InvalidOption
from edgesdk.system.checks import checked_choice

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    prices: str | None = None
    free: bool = False

    def address(self) -> str:
        """The base URL, with the customer's part from the environment.

        Raises:
            InvalidOption: the variable is not set.
        """
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
        """The key from the environment; None where none is needed.

        Raises:
            InvalidOption: the variable is not set.
        """
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
    """Return the preset of this name.

    Raises:
        InvalidOption: there is none; the error suggests the nearest.
    """
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
    tokens = 1_000
    try:
        found = calc_price(
            Usage(input_tokens=tokens, output_tokens=tokens), model, provider_id=preset.prices
        )
    except LookupError:
        return None
    scale = 1_000_000 / tokens
    return float(found.input_price) * scale, float(found.output_price) * scale


@cache
def _presets() -> dict[str, Preset]:
    text = files(__package__).joinpath("presets.toml").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = tomllib.loads(text)
    return {name: Preset(name=name, **values) for name, values in table.items()}
