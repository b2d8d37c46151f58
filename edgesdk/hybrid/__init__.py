"""The hybrid client: answers on the device, and asks a cloud where that is worth it and allowed.

Names are loaded when they are first used; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
