"""Say where edgesdk keeps its files."""

from __future__ import annotations

import os
from pathlib import Path


def default_root() -> Path:
    """The folder that EDGESDK_HOME names, else the user's data folder of this system."""
    named = os.environ.get("EDGESDK_HOME")
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_path("edgesdk", appauthor=False))
