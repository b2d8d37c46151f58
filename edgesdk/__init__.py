"""Small language models on the device.

Names are loaded when they are first used, so that `import edgesdk` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from edgesdk.bundle.opening import Bundle as Bundle
    from edgesdk.bundle.opening import open_bundle as open_bundle
    from edgesdk.errors import EdgeError as EdgeError

_HOME = {
    "Bundle": "edgesdk.bundle.opening",
    "EdgeError": "edgesdk.errors",
    "open_bundle": "edgesdk.bundle.opening",
}

__all__ = ["Bundle", "EdgeError", "__version__", "open_bundle"]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'edgesdk' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
