"""Text from a model on its way to a terminal."""

from __future__ import annotations

import re

# All control characters but tab and newline. A model's text is not to move the cursor, retitle
# the window or paste into the shell.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` with each control character replaced by U+FFFD."""
    return _CONTROL.sub("\ufffd", text)
