"""What one call costs, over all the attempts that it takes."""

from __future__ import annotations

import logging
import threading

from edgesdk.errors import BudgetExceeded, RequestError
from edgesdk.hybrid.cloud.chunks import Usage
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.spending.budget import Budget, Reservation
from edgesdk.hybrid.spending.limits import Cost

_LOG = logging.getLogger("edgesdk.hybrid")


class CallSpending:
    """Implements `edgesdk.hybrid.cloud.charges.Charges`.

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
    """Implements `edgesdk.hybrid.cloud.charges.Charge`; the file hears of it later, because that
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
