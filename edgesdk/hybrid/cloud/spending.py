"""Limits what the cloud may cost, and counts what it did cost."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

from edgesdk.errors import BudgetExceeded, InvalidOption, RequestError
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.wire import Usage
from edgesdk.hybrid.storage.database import Database

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


_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS spending (id INTEGER PRIMARY KEY, at REAL NOT NULL,"
    " money REAL NOT NULL, tokens INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS spending_at ON spending (at)",
)


class Budget:
    """Counts in a file, which several processes may share, or in memory.

    A reservation that is never settled, because its process died, stays counted in full until its
    hour or day is over: the money may have been spent.

    Args:
        path: of the SQLite file; None for memory.
        clock: seconds since the epoch.

    Raises:
        RequestError: the file cannot be used.
    """

    def __init__(
        self,
        limits: SpendingLimits,
        path: Path | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._database = Database(
            path,
            what="The budget's file" if path else "The budget",
            hint="Delete it to start from nothing, or name another.",
        )
        with self._database.writing() as database:
            self._database.require(database, "spending")
            for statement in _SCHEMA:
                database.execute(statement)

    def reserve(self, worst: Cost, *, before: Cost | None = None) -> Reservation:
        """Set aside what a call, or one attempt of it, may cost at most.

        Args:
            before: what earlier attempts of the same call cost; for the limits per call.

        Raises:
            BudgetExceeded: with what others have spent or reserved it would go above a limit.
            RequestError: the file cannot be used any more.
        """
        so_far = before or Cost()
        whole = Cost(so_far.money + worst.money, so_far.tokens + worst.tokens)
        alone = self._limits.per_call(whole)
        if alone is not None:
            raise BudgetExceeded(
                f"The call may cost {_phrase(whole)}, which is above {alone}.",
                limit=alone,
                free_in=None,
                hint="Shorten the prompt, or allow fewer tokens of answer.",
            )
        now = self._clock()
        with self._database.writing() as database:
            database.execute("DELETE FROM spending WHERE at <= ?", (now - DAY,))
            for name, seconds, money, amount in self._limits.windows():
                self._check(database, name, now, seconds, money, amount, worst)
            row = database.execute(
                "INSERT INTO spending (at, money, tokens) VALUES (?, ?, ?)",
                (now, worst.money, worst.tokens),
            ).lastrowid
        assert row is not None, "an insert has a row"
        return Reservation(self, row)

    def spent(self, seconds: float = DAY) -> Cost:
        """What was spent or is reserved in the last `seconds`, of at most a day."""
        with self._database.reading() as database:
            money, tokens = database.execute(
                "SELECT total(money), total(tokens) FROM spending WHERE at > ?",
                (self._clock() - seconds,),
            ).fetchone()
        return Cost(money, int(tokens))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _check(
        self,
        database: sqlite3.Connection,
        name: str,
        now: float,
        seconds: float,
        money: bool,
        amount: float,
        worst: Cost,
    ) -> None:
        column = "money" if money else "tokens"
        rows = database.execute(
            f"SELECT at, {column} FROM spending WHERE at > ? ORDER BY at", (now - seconds,)
        ).fetchall()
        over = sum(cost for _, cost in rows) + getattr(worst, column) - amount
        # Sums of floats may come out a hair above.
        if over <= 1e-9:
            return
        free_in = None
        for at, cost in rows:
            over -= cost
            if over <= 1e-9:
                free_in = at + seconds - now
                break
        wait = "" if free_in is None else f" It is free again in {free_in:,.0f} s."
        raise BudgetExceeded(
            f"The call may cost {_phrase(worst)}; {name} is {amount:g} and does not have that"
            f" left.{wait}",
            limit=name,
            free_in=free_in,
        )

    def _settle(self, row: int, actual: Cost | None) -> None:
        with self._database.writing() as database:
            if actual is None:
                database.execute("DELETE FROM spending WHERE id = ?", (row,))
            else:
                database.execute(
                    "UPDATE spending SET money = ?, tokens = ? WHERE id = ?",
                    (actual.money, actual.tokens, row),
                )


class Reservation:
    """Money set aside for one call."""

    def __init__(self, budget: Budget, row: int) -> None:
        self._budget = budget
        self._row = row

    def settle(self, actual: Cost) -> None:
        """The call cost `actual`, also where that is more than was reserved."""
        self._budget._settle(self._row, actual)

    def release(self) -> None:
        """Nothing was sent, so nothing is owed."""
        self._budget._settle(self._row, None)


def _phrase(cost: Cost) -> str:
    return f"{cost.money:.6g} and {cost.tokens:,} tokens"


_LOG = logging.getLogger("edgesdk.hybrid")


class CallSpending:
    """Implements `edgesdk.hybrid.cloud.spending.Charges`.

    Every attempt is reserved at its worst before it is sent, and stays so unless the endpoint
    counts, or has not worked: an endpoint may charge for an answer that broke off, and for the
    second one, and for that of a hedge.

    Args:
        budget: None for no limit.
        prompt_tokens, output_tokens: of one attempt, at most.
    """

    def __init__(self, budget: Budget | None, prompt_tokens: int, output_tokens: int) -> None:
        self._budget = budget
        self._prompt_tokens = prompt_tokens
        self._output_tokens = output_tokens
        self._guard = threading.Lock()
        self._charges: list[_AttemptCharge] = []

    def reserve(self, cloud: Cloud) -> _AttemptCharge:
        """See `Charges.reserve`."""
        worst = cost_of(cloud, self._prompt_tokens, self._output_tokens)
        with self._guard:
            try:
                self._write_down()
                reservation = (
                    None if self._budget is None else self._budget.reserve(worst, before=self.cost)
                )
            except RequestError as error:
                raise BudgetExceeded(
                    f"It is not known how much may be spent: {error}",
                    limit="its file cannot be used",
                    free_in=None,
                ) from error
            charge = _AttemptCharge(cloud, worst, reservation)
            self._charges.append(charge)
        return charge

    @property
    def cost(self) -> Cost:
        """Of all attempts so far; the worst case of those that did not end with a count."""
        return Cost(
            sum(charge.cost.money for charge in self._charges),
            sum(charge.cost.tokens for charge in self._charges),
        )

    def settle(self) -> None:
        """The call is over. Where the budget's file cannot be written, what it has stays: the
        worst case."""
        with self._guard:
            try:
                self._write_down()
            except RequestError as error:
                _LOG.warning("what a call cost was not written down: %s", error)

    def _write_down(self) -> None:
        for charge in self._charges:
            charge.write_down()


class _AttemptCharge:
    """Implements `edgesdk.hybrid.cloud.spending.Charge`; the file hears of it later, because that
    may take a while."""

    def __init__(self, cloud: Cloud, worst: Cost, reservation: Reservation | None) -> None:
        self.cost = worst
        self._cloud = cloud
        self._reservation = reservation
        self._written: Cost = worst

    def settle(self, usage: Usage) -> None:
        """See `Charge.settle`."""
        self.cost = cost_of(self._cloud, usage.prompt_tokens, usage.completion_tokens)

    def release(self) -> None:
        """See `Charge.release`."""
        self.cost = Cost()

    def write_down(self) -> None:
        """Tell the budget, where it does not know yet; raises RequestError."""
        cost = self.cost
        if self._reservation is None or cost == self._written:
            return
        if cost == Cost():
            self._reservation.release()
        else:
            self._reservation.settle(cost)
        self._written = cost


def cost_of(cloud: Cloud, prompt_tokens: int, output_tokens: int) -> Cost:
    """What an endpoint asks for so many tokens."""
    money = prompt_tokens * cloud.input_price + output_tokens * cloud.output_price
    return Cost(money / 1e6, prompt_tokens + output_tokens)


class Charge(Protocol):
    """The most that one attempt may cost, set aside. All of it is owed unless one of these says
    otherwise, once."""

    def settle(self, usage: Usage) -> None:
        """The endpoint counted this."""

    def release(self) -> None:
        """Nothing was sent, or the endpoint said that it does not answer."""


class Charges(Protocol):
    """Of one call, attempt by attempt."""

    def reserve(self, cloud: Cloud) -> Charge:
        """Set aside what one more attempt there may cost; several threads may ask, and it may
        take a while.

        Raises:
            BudgetExceeded: there is not enough left, or nobody knows.
        """


class NoCharge:
    """Implements `Charge` and `Charges` for those who do not count."""

    def reserve(self, cloud: Cloud) -> NoCharge:
        """See `Charges.reserve`."""
        return self

    def settle(self, usage: Usage) -> None:
        """See `Charge.settle`."""

    def release(self) -> None:
        """See `Charge.release`."""
