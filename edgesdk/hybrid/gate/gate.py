"""An app's settings for what is asked before the device tries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.gate.features import Messages
from edgesdk.hybrid.gate.prompts import PromptGate
from edgesdk.hybrid.gate.rates import Rates
from edgesdk.power import PowerState

Hint = Literal["local", "cloud"]


@dataclass(frozen=True)
class DraftGate:
    """When the device does not even try. It holds only where the cloud may be asked instead.

    Attributes:
        hint: looks at the messages: "cloud" sends them there at once, "local" has the device try
            whatever its state and the learned gate say; None where it has no opinion. If it
            fails, it has none.
        prompts: learned from prompts; None for the one that is kept for this model, if there is
            one.
        sensor: says how the device is, such as `edgesdk.power.read_sensors`; None asks none.
        hottest: degrees Celsius from which on the device is spared.
        least_battery: percent down to which it is spared, where it is not plugged in.
        rates: how fast the device is; shared by clients of one model, if it is given to all.
        share: of the deadline that a draft may be expected to take, above 0 and at most 1; the
            rest is the cloud's, should the draft not be kept.

    Raises:
        InvalidOption: a number is out of its range.
    """

    hint: Callable[[Messages], Hint | None] | None = None
    prompts: PromptGate | None = None
    sensor: Callable[[], PowerState] | None = None
    hottest: float = 90.0
    least_battery: float = 15.0
    rates: Rates = field(default_factory=Rates)
    share: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InvalidOption(f"share must be above 0 and at most 1, not {self.share}.")
        if not 0 <= self.least_battery <= 100:
            raise InvalidOption(
                f"least_battery must be between 0 and 100, not {self.least_battery}."
            )
