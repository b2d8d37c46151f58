"""Stop texts in a stream: found across token borders, and never shown in part."""

from __future__ import annotations

from collections.abc import Callable


class StopFilter:
    """Passes text on until a stop text is complete.

    Where texts overlap, the one that completes first counts; the outcome does not depend on how
    the text was cut into pieces.

    Args:
        is_call: whether an answer so far calls tools. From there on no stop text counts: it would
            cut the call. None where there are no tools.

    Attributes:
        stop_text: the one that completed; None before that.
    """

    def __init__(
        self, stops: tuple[str, ...], *, is_call: Callable[[str], bool] | None = None
    ) -> None:
        self._stops = stops
        self._is_call = is_call
        self._text = ""
        self._held = ""
        self.stop_text: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop text completed."""
        return self.stop_text is not None

    def feed(self, text: str) -> str:
        """What may be shown after `text` arrived; `stopped` tells whether it is the last."""
        if not self._stops:
            return text
        if self._is_call is not None:
            self._text += text
            if self._is_call(self._text):
                self._stops = ()
                return self.flush() + text
        held = self._held + text
        # (where it ends, where it starts): the earliest end, and the longest of those.
        found = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            end, start = min(found)
            self.stop_text = held[start:end]
            self._held = ""
            return held[:start]
        keep = max(overlap(held, stop) for stop in self._stops)
        shown = len(held) - keep
        self._held = held[shown:]
        return held[:shown]

    def finish(self, text: str) -> str:
        """What may be shown of the last `text`, and of what was held back."""
        return "" if self.stopped else self.feed(text) + self.flush()

    def flush(self) -> str:
        """What was held back as the possible start of a stop text that never came."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a start of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
