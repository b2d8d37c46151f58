"""What the decode loop needs of a constraint: which tokens may come next."""

from __future__ import annotations

from typing import Protocol

from edgesdk.engines.base import Logits


class Constraint(Protocol):
    """Follows one answer token by token. It belongs to one generation."""

    def masked(self, logits: Logits) -> Logits:
        """A copy of `logits`, float32 [vocab], with -inf for each token that may not come next.

        A token that ends the answer is among those that may come exactly where `complete` is True.

        Raises:
            StructureError: no token may come next, or the constraint outgrew its limits.
        """

    def accept(self, token: int) -> None:
        """Note that `token` was chosen; it was not masked, and does not end the answer."""

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""

    @property
    def finished(self) -> bool:
        """Whether the answer can only end here."""
