"""Tell a model's reasoning from its answer, for whole texts and for streams alike."""

from __future__ import annotations

from typing import Literal, NamedTuple

from edgesdk.generation.stopping import overlap
from edgesdk.text.reasoning_format import ReasoningMarks


class ReadText(NamedTuple):
    """What of a text is certain: its part of the reasoning, and its part of the answer."""

    reasoning: str
    answer: str


class ReasoningReader:
    """Reads one answer piece by piece. The outcome does not depend on how it was cut into pieces.

    Reasoning is looked for at the start of the answer only, so that an answer may quote the marks.
    Blanks around the marks belong to neither part. A mark that is cut is held back.

    Args:
        marks: of the model; None for one that does not reason, whose text is all answer.
        inside: whether the prompt has opened the reasoning.

    Attributes:
        tokens: how many pieces belong to the reasoning, its marks included; of tokens, where each
            piece is one.
    """

    def __init__(self, marks: ReasoningMarks | None, *, inside: bool = False) -> None:
        self.tokens = 0
        self._marks = marks
        self._inside = inside
        self._place: Literal["start", "reasoning", "answer"] = "start"
        if marks is None:
            self._place = "answer"
        elif inside:
            self._place = "reasoning"
        self._held = ""
        # Whether nothing but blanks came since the reasoning was opened.
        self._fresh = inside
        # Whether a mark came, so that blanks are no part of the answer.
        self._marked = False
        self._pending = 0
        self._span: tuple[float, float] | None = None

    def restarted(self) -> ReasoningReader:
        """One that reads the same answer again from its start."""
        return ReasoningReader(self._marks, inside=self._inside)

    @property
    def reasons(self) -> bool:
        """Whether the answer so far ends in the reasoning."""
        return self._place == "reasoning"

    @property
    def answers(self) -> bool:
        """Whether the answer itself has begun; it may not, before a mark is whole."""
        return self._place == "answer"

    @property
    def seconds(self) -> float:
        """How long the reasoning took."""
        return 0.0 if self._span is None else self._span[1] - self._span[0]

    def feed(self, text: str, span: tuple[float, float] = (0.0, 0.0)) -> ReadText:
        """What is certain after `text` arrived.

        Args:
            span: when making it began and ended, in seconds of any clock.
        """
        reasoned, held = self.reasons, self._held
        self._held += text
        found = self._read()
        if reasoned or self.reasons or found.reasoning:
            self.tokens += 1 + (0 if reasoned else self._pending)
            self._pending = 0
            self._span = span if self._span is None else (self._span[0], span[1])
        elif self._place == "start" and not self._marked and (text or held):
            self._pending += 1
        else:
            self._pending = 0
        return found

    def flush(self) -> ReadText:
        """What was held back as a part of a mark that never came."""
        held, self._held = self._held, ""
        if self.reasons:
            return ReadText("" if self._fresh else held.rstrip(), "")
        if self._place == "start" and self._marked:
            held = held.strip("\n")
        return ReadText("", held)

    def _read(self) -> ReadText:
        reasoning, answer = "", ""
        while True:
            place, before = self._place, self._held
            if place == "start":
                self._read_start()
            elif place == "reasoning":
                reasoning += self._read_reasoning()
            else:
                answer += self._read_answer()
            # What is left is too short to tell.
            if (self._place, self._held) in ((place, before), ("answer", "")):
                return ReadText(reasoning, answer)

    def _read_start(self) -> None:
        marks = self._marks
        assert marks is not None, "without marks all is answer"
        rest = self._held.lstrip()
        for mark in (marks.opening, *marks.headers):
            if rest.startswith(mark.lstrip()):
                self._held = rest[len(mark.lstrip()) :]
                self._marked = True
                if mark == marks.opening:
                    self._place, self._fresh = "reasoning", True
                return
        if any(mark.lstrip().startswith(rest) for mark in (marks.opening, *marks.headers)):
            return
        self._place = "answer"
        if self._marked:
            self._held = self._held.lstrip("\n")

    def _read_reasoning(self) -> str:
        marks = self._marks
        assert marks is not None, "without marks all is answer"
        if self._fresh:
            # Some models open again what the prompt has opened.
            rest = self._held.lstrip()
            if marks.opening.startswith(rest):
                self._held = rest.removeprefix(marks.opening)
                return ""
            self._held = rest.removeprefix(marks.opening).lstrip()
            self._fresh = not self._held
        at = self._held.find(marks.closing)
        if at >= 0:
            shown = self._held[:at].rstrip()
            self._held = self._held[at + len(marks.closing) :]
            self._place, self._marked = "start", True
            return shown
        certain = len(self._held) - overlap(self._held, marks.closing)
        shown = self._held[:certain].rstrip()
        self._held = self._held[len(shown) :]
        return shown

    def _read_answer(self) -> str:
        ending = "" if self._marks is None else self._marks.ending
        if not ending:
            shown, self._held = self._held, ""
            return shown
        at = self._held.find(ending)
        if at >= 0:
            shown, self._held = self._held[:at], self._held[at + len(ending) :]
            self._place, self._marked = "start", True
            return shown
        certain = len(self._held) - overlap(self._held, ending)
        shown, self._held = self._held[:certain], self._held[certain:]
        return shown
