"""A terminal that a model's answer is shown on."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# All control characters but tab and newline. A model's text is not to move the cursor, retitle
# the window or paste into the shell.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` with each control character replaced by U+FFFD."""
    return _CONTROL.sub("\ufffd", text)


@contextmanager
def quiet_keyboard() -> Iterator[None]:
    """While the block runs, keys do not show and Ctrl-C does not throw output away.

    A terminal drops what it has not yet shown when Ctrl-C is pressed. Of a display that redraws
    itself this would lose cursor movements, and leave half of the old frame standing. What is
    typed meanwhile stays for whoever reads next.
    """
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    import termios

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = termios.tcgetattr(descriptor)
    local_modes = 3
    quiet[local_modes] = (before[local_modes] & ~termios.ECHO) | termios.NOFLSH
    termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
