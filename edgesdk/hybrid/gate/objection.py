"""What a gate says."""

from __future__ import annotations

from typing import NamedTuple


class Objection(NamedTuple):
    """Why the device's answer is not wanted.

    Attributes:
        gate: which gate spoke, in a word; empty where it was the draft itself.
        reason: in words of the SDK's own, which may be written down.
    """

    gate: str
    reason: str
