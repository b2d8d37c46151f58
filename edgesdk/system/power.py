"""Decide how hard to work the device, by its battery and its temperature.

A policy looks at what the sensors say and answers with a pace. Threads are taken when a model is
loaded; pauses follow the sensors while it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from edgesdk.errors import InvalidOption
from edgesdk.system.checks import checked_choice

_SENSOR_SECONDS = 5.0
# A pause is no longer than this, so that a cancelled answer ends soon; the rest stays owed.
_MAX_PAUSE = 0.1


@dataclass(frozen=True)
class PowerState:
    """What the sensors say; None where there is none.

    Attributes:
        battery: how full it is, 0 to 100.
        plugged: whether the device is on mains.
        celsius: of the hottest sensor.
    """

    battery: float | None = None
    plugged: bool | None = None
    celsius: float | None = None


@dataclass(frozen=True)
class Pace:
    """How hard to work.

    Attributes:
        cores: share of the threads that would be taken otherwise, above 0 and at most 1.
        pause: seconds of rest for each second of computing.

    Raises:
        InvalidOption: a value is out of its range.
    """

    cores: float = 1.0
    pause: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.cores <= 1:
            raise InvalidOption(f"cores must be above 0 and at most 1, not {self.cores}.")
        if not 0 <= self.pause <= 100:
            raise InvalidOption(f"pause must be between 0 and 100, not {self.pause}.")


PowerPolicy: TypeAlias = Literal["performance", "balanced", "saver"] | Callable[[PowerState], Pace]


def performance(state: PowerState) -> Pace:
    """Work at full speed, always."""
    return Pace()


def balanced(state: PowerState) -> Pace:
    """Work at full speed, unless the battery is nearly empty or the device is hot."""
    if _is_above(state.celsius, 95):
        return Pace(0.5, pause=1.0)
    if _is_above(state.celsius, 85) or _is_low(state, 20):
        return Pace(0.5, pause=0.25)
    return Pace()


def saver(state: PowerState) -> Pace:
    """Work on half of the cores. Pause on battery, and longer when it is low or the device warm."""
    if _is_above(state.celsius, 75) or _is_low(state, 30):
        return Pace(0.5, pause=1.0)
    return Pace(0.5, pause=0.0 if state.plugged in (True, None) else 0.33)


_NAMED: dict[str, Callable[[PowerState], Pace]] = {
    "performance": performance,
    "balanced": balanced,
    "saver": saver,
}


def read_sensors() -> PowerState:
    """What psutil reports of this device."""
    import psutil

    # psutil has these only on the systems whose sensors it can read.
    battery = getattr(psutil, "sensors_battery", lambda: None)()
    groups: dict[str, list[Any]] = getattr(psutil, "sensors_temperatures", dict)()
    degrees = [float(sensor.current) for group in groups.values() for sensor in group]
    return PowerState(
        battery=None if battery is None else float(battery.percent),
        plugged=None if battery is None else battery.power_plugged,
        celsius=max(degrees, default=None),
    )


class Governor:
    """Asks a power policy for the pace, and keeps it.

    Args:
        sensor: read every 5 seconds at most; likewise the policy is asked.
        clock, sleep: as `time.monotonic` and `time.sleep`.

    Raises:
        InvalidOption: no policy has that name.
    """

    def __init__(
        self,
        policy: PowerPolicy,
        *,
        sensor: Callable[[], PowerState] = read_sensors,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not callable(policy):
            policy = _NAMED[checked_choice("The power policy", policy, tuple(_NAMED))]
        self._policy = policy
        self._sensor = sensor
        self._sleep = sleep
        self.clock = clock
        self._looked: float | None = None
        self._pace = Pace()

    @property
    def pace(self) -> Pace:
        """The pace that the policy wants now."""
        now = self.clock()
        if self._looked is None or now - self._looked >= _SENSOR_SECONDS:
            self._pace = self._policy(self._sensor())
            self._looked = now
        return self._pace

    def threads(self, max_threads: int) -> int:
        """How many of `max_threads` threads to take."""
        return max(1, int(max_threads * self.pace.cores))

    def rest(self, worked: float, owed: float) -> tuple[float, float]:
        """Pause for `worked` seconds of computing and `owed` seconds of pause from before.

        Returns:
            Seconds of pause that are still owed, and those that were taken.
        """
        pause = self.pace.pause
        due = owed + worked * pause if pause else 0.0
        if due <= 0:
            return 0.0, 0.0
        now = min(due, _MAX_PAUSE)
        self._sleep(now)
        return due - now, now


def _is_above(celsius: float | None, limit: float) -> bool:
    return celsius is not None and celsius >= limit


def _is_low(state: PowerState, percent: float) -> bool:
    on_battery = state.plugged is False
    return on_battery and state.battery is not None and state.battery <= percent
