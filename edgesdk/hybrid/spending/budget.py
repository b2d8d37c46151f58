"""Spending that is reserved before it happens, so that callers together never overspend."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from edgesdk.errors import BudgetExceeded
from edgesdk.hybrid.database import Database
from edgesdk.hybrid.spending.limits import DAY, Cost, SpendingLimits

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
