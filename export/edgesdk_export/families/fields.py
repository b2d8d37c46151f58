"""Read typed values from a configuration that may hold anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgesdk.errors import ConfigMismatch
from edgesdk_export.families.optimum_hint import optimum_hint

# No decoder is deeper; a lie here would cost memory before any tensor could belie it.
MAX_LAYERS = 4096

_HINT = "Compare the configuration with the one that the model was published with."


@dataclass(frozen=True)
class ConfigFields:
    """A configuration, and what to call it in messages.

    A `default` stands in for a key that is absent or null; without one the key must be there.
    """

    values: Mapping[str, Any]
    where: str

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def within(self, key: str) -> ConfigFields:
        """The object under a key; empty where there is none."""
        value = self.values.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self._wrong(key, "an object")
        return ConfigFields(value, f"{self.where}: {key}")

    def count(self, key: str, default: int | None = None, *, limit: int = 2**40) -> int:
        """A positive integer up to `limit`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
            raise self._wrong(key, f"a positive integer up to {limit:,}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._get(key, default)
        if not _is_finite(value):
            raise self._wrong(key, "a number")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above zero."""
        value = self.number(key, default)
        if value <= 0:
            raise self._wrong(key, "a number above 0")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers above zero."""
        value = self._get(key, None)
        if not isinstance(value, list) or not all(_is_finite(n) and n > 0 for n in value):
            raise self._wrong(key, "a list of numbers above 0")
        return tuple(map(float, value))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self._get(key, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "a list of strings")
        return tuple(value)

    def optional_count(self, key: str) -> int | None:
        """A positive integer, or None where the key is absent or null."""
        return self.count(key) if key in self else None

    def optional_positive(self, key: str) -> float | None:
        """A number above zero, or None where the key is absent or null."""
        return self.positive(key) if key in self else None

    def refuse(self, key: str, *neutral: Any) -> None:
        """Raise if a key asks for something that a `DecoderSpec` cannot say. Absent, null, false
        and the `neutral` values are fine."""
        value = self.values.get(key)
        if value is None or value is False or value in neutral:
            return
        raise ConfigMismatch(
            f"{self.where}: {key} = {value!r} is not supported.",
            hint=optimum_hint(self.values.get("model_type"))
            or "An export would not compute what the model computes.",
        )

    def mismatch(self, what: str) -> ConfigMismatch:
        """An error about this configuration as a whole."""
        return ConfigMismatch(f"{self.where}: {what}.", hint=_HINT)

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise ConfigMismatch(f"{self.where}: {key} is missing.", hint=_HINT)
        return default

    def _wrong(self, key: str, wanted: str) -> ConfigMismatch:
        shown = repr(self.values.get(key))
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return ConfigMismatch(f"{self.where}: {key} = {shown} is not {wanted}.", hint=_HINT)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # JSON has integers that no float can hold.
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**1000
