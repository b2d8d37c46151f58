"""Limits what the cloud may cost, and counts what it did cost."""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from os import PathLike

from edgesdk.errors import BudgetExceeded, InvalidOption, RequestError
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.wire import Usage
from edgesdk.hybrid.storage.database import Database

HOUR, DAY = 3600.0, 86400.0
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS spending (id INTEGER PRIMARY KEY, at REAL NOT NULL,"
    " money REAL NOT NULL, tokens INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS spending_at ON spending (at)",
    # One row: the clock when it was last read, the latest that it ever showed, and the budget's
    # own time then, which `spending.at` is in.
    "CREATE TABLE IF NOT EXISTS budget_clock (read REAL NOT NULL, latest REAL NOT NULL,"
    " at REAL NOT NULL)",
)
# More tokens than these are no count; SQLite holds them, and floats hold them exactly.
_MAX_TOKENS = 10**12
# An endpoint may count more than was reserved, because its tokenizer is another one or it reasons
# unseen; more than this many times as much is not believed.
_MAX_OVERRUN = 10
# Bytes of text to a token, where nobody counted: rather too many tokens than too few.
_BYTES_PER_TOKEN = 3
_LOG = logging.getLogger("edgesdk.hybrid")


@dataclass(frozen=True)
class Cost:
    """The cost of one call, or of several; neither part negative or endless.

    Attributes:
        money: in the currency of the endpoints' prices.
        tokens: of prompts and replies together.
    """

    money: float = 0.0
    tokens: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.money < math.inf and 0 <= self.tokens < math.inf):
            raise InvalidOption(f"A cost must not be negative or endless, but is {self}.")

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.money + other.money, self.tokens + other.tokens)

    def __str__(self) -> str:
        return f"{self.money:.6g} and {self.tokens:,} tokens"


@dataclass(frozen=True)
class SpendingLimits:
    """What may be spent. None stands for no limit.

    Hours and days are the last 60 minutes and the last 24 hours.

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

    def check_prices(self, clouds: Iterable[Cloud]) -> None:
        """Check that the prices of all endpoints are known where a limit is in money.

        Raises:
            InvalidOption: a limit of money would count nothing of an endpoint.
        """
        money = (self.money_per_call, self.money_per_hour, self.money_per_day)
        if all(limit is None for limit in money):
            return
        for cloud in clouds:
            if cloud.input_price is None or cloud.output_price is None:
                raise InvalidOption(
                    f"A limit of money needs the prices of {cloud.name}.",
                    hint="Give input_price and output_price of its Cloud, per million tokens (0"
                    " where it costs nothing); or limit tokens. Prices of many presets come with"
                    " pip install 'edgesdk[prices]'.",
                )

    def exceeded_by_call(self, cost: Cost) -> str | None:
        """Return the name of a limit per call that `cost` is above."""
        if self.money_per_call is not None and cost.money > self.money_per_call:
            return "money_per_call"
        if self.tokens_per_call is not None and cost.tokens > self.tokens_per_call:
            return "tokens_per_call"
        return None

    def windows(self) -> Iterator[tuple[str, float, str, float]]:
        """Yield name, seconds, what is counted ("money" or "tokens") and amount of each limit."""
        for counted in ("money", "tokens"):
            for window, seconds in (("hour", HOUR), ("day", DAY)):
                name = f"{counted}_per_{window}"
                amount = getattr(self, name)
                if amount is not None:
                    yield name, seconds, counted, amount


class Budget:
    """Reserves spending before it happens, so that callers together never overspend.

    It counts in a file, which several processes may share, or in memory. A reservation that is
    never settled, because its process died, stays counted in full until its hour or day is over:
    the money may have been spent.

    A clock that is set back neither frees what was spent nor holds it for longer: hours and days
    are counted on by what the clock advances, and time that it had shown before counts once.

    Args:
        path: of the SQLite file; None for memory.
        clock: seconds since the epoch.

    Attributes:
        limits: what may be spent.

    Raises:
        RequestError: the file cannot be used.
    """

    def __init__(
        self,
        limits: SpendingLimits,
        path: str | PathLike[str] | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._database = Database(
            path,
            name="The budget's file" if path else "The budget",
            hint="Delete it to start from nothing, or name another.",
        )
        with self._database.transaction() as database:
            self._database.require_table(database, "spending")
            for statement in _SCHEMA:
                database.execute(statement)

    def reserve(self, max_cost: Cost, *, spent_before: Cost | None = None) -> Reservation:
        """Set aside what a call, or one attempt of it, may cost at most.

        Args:
            spent_before: what earlier attempts of the same call cost; for the limits per call.

        Raises:
            BudgetExceeded: with what others have spent or reserved it would go above a limit.
            RequestError: the file cannot be used any more.
        """
        whole_call = max_cost + (spent_before or Cost())
        limit = self.limits.exceeded_by_call(whole_call)
        if limit is not None:
            raise BudgetExceeded(
                f"The call may cost {whole_call}, which is above {limit}.",
                limit=limit,
                free_in=None,
                hint="Shorten the prompt, or allow fewer tokens of answer.",
            )
        with self._database.transaction() as database:
            now = self._now(database)
            database.execute("DELETE FROM spending WHERE at <= ?", (now - DAY,))
            excesses = (_excess(database, *limit, now, max_cost) for limit in self.limits.windows())
            excess = next((one for one in excesses if one is not None), None)
            row = None
            if excess is None:
                row = database.execute(
                    "INSERT INTO spending (at, money, tokens) VALUES (?, ?, ?)",
                    (now, max_cost.money, max_cost.tokens),
                ).lastrowid
        # Raised where the transaction is over, so that it is remembered what the clock showed.
        if excess is not None:
            raise excess
        assert row is not None, "an insert has a row"
        return Reservation(self._database, row)

    def spent(self, seconds: float = DAY) -> Cost:
        """Return what was spent or is reserved in the last `seconds`, of at most a day."""
        with self._database.transaction() as database:
            money, tokens = database.execute(
                "SELECT total(money), total(tokens) FROM spending WHERE at > ?",
                (self._now(database) - seconds,),
            ).fetchone()
        return Cost(money, int(tokens))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _now(self, database: sqlite3.Connection) -> float:
        """Return the budget's own time, and remember the clock's. It never goes back.

        The clock is read within the transaction, so that processes read it one after the other.
        """
        clock = self._clock()
        row = database.execute("SELECT read, latest, at FROM budget_clock").fetchone()
        if row is None:
            # What was spent before there was such a table may be of a clock that was ahead.
            (newest,) = database.execute("SELECT max(at) FROM spending").fetchone()
            at = clock if newest is None else max(clock, newest)
            database.execute("INSERT INTO budget_clock VALUES (?, ?, ?)", (clock, clock, at))
            return at
        read, latest, at = row
        # A clock that was set back, and then right again, shows no more time than the new one.
        at += clock - latest if clock > latest else max(clock - read, 0.0)
        database.execute(
            "UPDATE budget_clock SET read = ?, latest = ?, at = ?", (clock, max(clock, latest), at)
        )
        return float(at)


def _excess(
    database: sqlite3.Connection,
    name: str,
    seconds: float,
    counted: str,
    amount: float,
    now: float,
    max_cost: Cost,
) -> BudgetExceeded | None:
    """Return the error for a limit that `max_cost` would go above; None if it would not."""
    rows = database.execute(
        f"SELECT at, {counted} FROM spending WHERE at > ? ORDER BY at", (now - seconds,)
    ).fetchall()
    over = sum(cost for _, cost in rows) + getattr(max_cost, counted) - amount
    # Sums of floats may come out a hair above.
    if over <= 1e-9:
        return None
    free_in = None
    for at, cost in rows:
        over -= cost
        if over <= 1e-9:
            free_in = at + seconds - now
            break
    wait = "" if free_in is None else f" It is free again in {free_in:,.0f} s."
    return BudgetExceeded(
        f"The call may cost {max_cost}; {name} is {amount:g} and does not have that left.{wait}",
        limit=name,
        free_in=free_in,
    )


@dataclass(frozen=True)
class Reservation:
    """Money set aside for one call."""

    database: Database
    row: int

    def settle(self, actual: Cost) -> None:
        """Count `actual` instead, also where that is more than was reserved, or nothing."""
        with self.database.transaction() as database:
            database.execute(
                "UPDATE spending SET money = ?, tokens = ? WHERE id = ?",
                (actual.money, actual.tokens, self.row),
            )


class CallSpending:
    """Counts what one call costs, over all its attempts.

    Every attempt is reserved at its maximum before it is sent, and stays so unless the endpoint
    gives a whole answer, or has not worked: an endpoint may charge for an answer that broke off,
    and for the second one, and for that of a hedge. Several threads may use it.

    Args:
        budget: None for no limit.
        prompt_tokens, output_tokens: of one attempt, at most; 0 where nobody knows.
    """

    def __init__(
        self, budget: Budget | None = None, prompt_tokens: int = 0, output_tokens: int = 0
    ) -> None:
        self._budget = budget
        self._prompt_tokens = prompt_tokens
        self._output_tokens = output_tokens
        self._guard = threading.Lock()
        self._charges: list[AttemptCharge] = []

    def reserve(self, cloud: Cloud) -> AttemptCharge:
        """Set aside what one more attempt at `cloud` may cost. It may wait for the budget's file.

        Raises:
            BudgetExceeded: there is not enough left, or nobody knows.
        """
        max_tokens = self._prompt_tokens, self._output_tokens
        max_cost = cost_of(cloud, *max_tokens)
        with self._guard:
            reservation = None
            try:
                self._record()
                if self._budget is not None:
                    reservation = self._budget.reserve(max_cost, spent_before=self.cost)
            except RequestError as error:
                raise BudgetExceeded(
                    f"It is not known how much may be spent: {error}",
                    limit="its file cannot be used",
                    free_in=None,
                ) from error
            charge = AttemptCharge(cloud, max_tokens, reservation)
            self._charges.append(charge)
        return charge

    @property
    def cost(self) -> Cost:
        """What all attempts cost so far; those that did not end with a count, at their maximum."""
        return sum((charge.cost for charge in self._charges), Cost())

    def settle(self) -> None:
        """Tell the budget what the call cost. Where its file cannot be written, the maximum
        stays."""
        with self._guard:
            try:
                self._record()
            except RequestError as error:
                _LOG.warning("what a call cost was not written down: %s", error)

    def _record(self) -> None:
        for charge in self._charges:
            charge.record()


class AttemptCharge:
    """What one attempt costs: its maximum, until `settle` or `release` says otherwise.

    Args:
        max_tokens: of its prompt and of its answer.

    Attributes:
        cost: as far as it is known now. The budget hears of it in `record`, because its file may
            be busy for a while.
    """

    def __init__(
        self, cloud: Cloud, max_tokens: tuple[int, int], reservation: Reservation | None
    ) -> None:
        self.cost = self._recorded = cost_of(cloud, *max_tokens)
        self._cloud = cloud
        self._max_tokens = max_tokens
        self._reservation = reservation

    def settle(self, usage: Usage | None, answer_bytes: int) -> None:
        """The endpoint gave a whole answer.

        Args:
            usage: as it counted. What is missing or not above 0 is estimated instead, and too much
                is not believed, so that no endpoint refills the budget, or empties it.
            answer_bytes: of all that it wrote.
        """
        max_prompt, max_output = self._max_tokens
        prompt, output = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        written = math.ceil(answer_bytes / _BYTES_PER_TOKEN)
        estimate = min(written, max_output) if max_output else written
        self.cost = cost_of(
            self._cloud,
            _believed(prompt, max_prompt, max_prompt),
            _believed(output, estimate, max_output),
        )

    def release(self) -> None:
        """Nothing was sent, or the endpoint said that it does not answer."""
        self.cost = Cost()

    def record(self) -> None:
        """Tell the budget the cost, where it does not know it yet; raises RequestError."""
        cost = self.cost
        if self._reservation is None or cost == self._recorded:
            return
        self._reservation.settle(cost)
        self._recorded = cost


def cost_of(cloud: Cloud, prompt_tokens: int, output_tokens: int) -> Cost:
    """Return what an endpoint asks for so many tokens."""
    prompt_tokens, output_tokens = min(prompt_tokens, _MAX_TOKENS), min(output_tokens, _MAX_TOKENS)
    money = prompt_tokens * (cloud.input_price or 0) + output_tokens * (cloud.output_price or 0)
    return Cost(money / 1e6, prompt_tokens + output_tokens)


def _believed(reported: float | None, estimate: int, reserved: int) -> int:
    """Return the tokens that count, of those that an endpoint reported."""
    # Not a number is not above 0 either.
    if reported is None or not reported > 0:
        return estimate
    bound = _MAX_OVERRUN * reserved if reserved else _MAX_TOKENS
    if reported > bound:
        _LOG.warning("an endpoint counted %g tokens where %d were to be expected", reported, bound)
    return math.ceil(min(reported, bound))
