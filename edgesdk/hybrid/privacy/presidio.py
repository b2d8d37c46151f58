"""Names and places, found by Microsoft's presidio (the extra `presidio`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgesdk.hybrid.privacy.finding import Finding


class Analyzer(Protocol):
    """What is used of `presidio_analyzer.AnalyzerEngine`."""

    def analyze(
        self, text: str, language: str, *, entities: list[str], score_threshold: float
    ) -> Sequence[Any]:
        """Results with `entity_type`, `start`, `end`."""


@dataclass(frozen=True)
class Presidio:
    """A detector for what no pattern describes.

    The analyzer is the app's to make, because names are found by a language model that the app
    chooses: presidio's own default would fetch one when it is first used.

    Attributes:
        analyzer: a `presidio_analyzer.AnalyzerEngine`; several threads call it.
        entities: presidio's names of what to look for; they become the kinds of findings.
        language: that the analyzer has a model for.
        least: presidio's score from which on something counts, 0 to 1.
    """

    analyzer: Analyzer
    entities: tuple[str, ...] = ("PERSON", "LOCATION")
    language: str = "en"
    least: float = 0.5

    def find(self, text: str) -> Iterator[Finding]:
        """See `Detector.find`."""
        found = self.analyzer.analyze(
            text, self.language, entities=list(self.entities), score_threshold=self.least
        )
        for one in found:
            yield Finding(one.entity_type, one.start, one.end)
