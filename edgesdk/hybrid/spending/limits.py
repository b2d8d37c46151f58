"""How much may be spent: in money, in tokens, per call, per hour, per day."""

from __future__ import annotations

from dataclasses import dataclass, fields

from edgesdk.errors import InvalidOption

HOUR, DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class Cost:
    """Of a call, or of several.

    Attributes:
        money: in the currency of the endpoints' prices.
        tokens: of prompts and answers together.
    """

    money: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class SpendingLimits:
    """None stands for no limit. Hours and days are the last 60 minutes and the last 24 hours.

    Raises:
        InvalidOption: a limit is negative.
    """

    money_per_call: float | None = None
    money_per_hour: float | None = None
    money_per_day: float | None = None
    tokens_per_call: int | None = None
    tokens_per_hour: int | None = None
    tokens_per_day: int | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and not value >= 0:
                raise InvalidOption(f"{each.name} must not be negative, but is {value}.")

    def per_call(self, cost: Cost) -> str | None:
        """The name of a limit that `cost` alone is above."""
        if self.money_per_call is not None and cost.money > self.money_per_call:
            return "money_per_call"
        if self.tokens_per_call is not None and cost.tokens > self.tokens_per_call:
            return "tokens_per_call"
        return None

    def windows(self) -> list[tuple[str, float, bool, float]]:
        """Name, seconds, whether it counts money (else tokens), and amount of each limit."""
        every = [
            ("money_per_hour", HOUR, True, self.money_per_hour),
            ("money_per_day", DAY, True, self.money_per_day),
            ("tokens_per_hour", HOUR, False, self.tokens_per_hour),
            ("tokens_per_day", DAY, False, self.tokens_per_day),
        ]
        return [
            (name, seconds, money, amount)
            for name, seconds, money, amount in every
            if amount is not None
        ]
