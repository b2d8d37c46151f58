"""JSON files that stand beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgesdk.errors import DamagedCheckpoint


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        DamagedCheckpoint: the file cannot be read, is not JSON, or is not an object.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpoint(
            f"{path} cannot be read: {error}.", hint="Download the checkpoint again."
        ) from None
    if not isinstance(value, dict):
        raise DamagedCheckpoint(
            f"{path} is not a JSON object.", hint="Download the checkpoint again."
        )
    return value
