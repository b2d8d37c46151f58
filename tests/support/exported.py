"""What the fixtures that export say of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Exported:
    """A bundle, and the peak resident memory in bytes of the process that exported it."""

    path: Path
    peak: int
