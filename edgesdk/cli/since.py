"""A moment as people give it: so long ago, or a date."""

from __future__ import annotations

import re
import time
from datetime import datetime

import click

_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def moment(value: str) -> float:
    """Seconds since the epoch, from "90m", "12h", "7d", "2w" or a date of ISO 8601 with or without
    a time; of this machine's time zone, unless it names one.

    Raises:
        click.BadParameter: it is none of these.
    """
    ago = re.fullmatch(r"(\d{1,6})([mhdw])", value)
    if ago is not None:
        return time.time() - int(ago[1]) * _SECONDS[ago[2]]
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{value!r} is no time; it looks like 12h, 7d or 2026-01-31."
        ) from None
