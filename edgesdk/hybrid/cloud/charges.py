"""What attempts cost, as far as those who make them have to say so."""

from __future__ import annotations

from typing import Protocol

from edgesdk.hybrid.cloud.chunks import Usage
from edgesdk.hybrid.cloud.endpoint import Cloud


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
