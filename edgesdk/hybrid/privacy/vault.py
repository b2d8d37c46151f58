"""One conversation's secrets, and the placeholders that stand for them."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterable, Mapping

from edgesdk.hybrid.privacy.finding import Detector, Finding, separate
from edgesdk.hybrid.privacy.placeholder import Placeholder, Reading, reading

# Text that reads as a placeholder without being one is hidden too, so that it comes back as it was.
_LITERAL = "TEXT"
_FIRST_NUMBERS = range(100, 900)


class Vault:
    """Takes private stretches out of the texts of one conversation.

    The same value has the same placeholder in all of them. Numbers start anywhere between 100 and
    900, by chance: a value has another name in the next conversation, and a placeholder from there
    means nothing here. Several threads may use it.

    Args:
        detectors: what finds them; an error of one comes out of `redact`.
        values: a vault's own `values`, to go on where it was.
        seed: of the first number, for a text that must read the same when it is sent again.
    """

    def __init__(
        self,
        detectors: Iterable[Detector],
        *,
        values: Mapping[Placeholder, str] | None = None,
        seed: str | None = None,
    ) -> None:
        self._detectors = tuple(detectors)
        self._values = dict(values or {})
        self._placeholders = {
            (placeholder.kind, value): placeholder for placeholder, value in self._values.items()
        }
        source = random.SystemRandom() if seed is None else random.Random(seed)
        self._next = source.choice(_FIRST_NUMBERS)
        self._numbers = {placeholder.number for placeholder in self._values}
        self._guard = threading.Lock()

    @property
    def values(self) -> Mapping[Placeholder, str]:
        """What each placeholder stands for. These are the secrets themselves."""
        return dict(self._values)

    @property
    def reading(self) -> Reading:
        """Finds the placeholders of this conversation."""
        return reading(frozenset(placeholder.kind for placeholder in self._values))

    def redact(self, text: str) -> str:
        """`text` with a placeholder for each private stretch; `restore` gives exactly it back."""
        found = [finding for detector in self._detectors for finding in detector.find(text)]
        with self._guard:
            # No later placeholder may have a number that this text has for something else.
            self._numbers.update(map(int, re.findall(r"[0-9]{1,9}", text)))
            found += [
                Finding(_LITERAL, spot.start, spot.end)
                for spot in self.reading.spots(text)
                if spot.placeholder in self._values
            ]
            pieces = []
            at = 0
            for finding in separate(found):
                value = text[finding.start : finding.end]
                pieces += [text[at : finding.start], str(self._placeholder(finding.kind, value))]
                at = finding.end
        return "".join([*pieces, text[at:]])

    def value(self, placeholder: Placeholder) -> str | None:
        """What `placeholder` stands for; None if it is none of this conversation's."""
        return self._values.get(placeholder)

    def _placeholder(self, kind: str, value: str) -> Placeholder:
        known = self._placeholders.get((kind, value))
        if known is not None:
            return known
        while self._next in self._numbers:
            self._next += 1
        made = Placeholder(kind, self._next)
        self._numbers.add(self._next)
        self._placeholders[kind, value] = made
        self._values[made] = value
        return made
