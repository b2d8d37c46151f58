"""Small language models on the device.

The names are listed in `__init__.pyi` and loaded when they are first used, so that `import edgesdk`
costs next to nothing.
"""

import lazy_loader

__version__ = "0.1.0.dev0"

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [*_names, "__version__"]
