"""Let the words of an answer through as they come, up to where calls may begin."""

from __future__ import annotations

from collections.abc import Iterable

from edgesdk.tools.call_syntax import CallSyntax
from edgesdk.tools.calls import call_marks, first_call_mark

# What an answer starts with that is a call as a whole, as Llama and models without tags have it.
_WHOLE_CALL_PREFIXES = ("{", "[", "<|python_tag|>", "```json", "```\n")


class CallFinder:
    """Reads one answer piece by piece.

    Args:
        syntax: how the model writes calls; None where that is not known.
        names: of the tools. Mistral's calls begin with one, where their mark has no text.
        only_marked: whether calls begin with a mark, and all else is words.

    Attributes:
        held: what was not let through: calls, or what may become one.
        mark: the mark that begins `held`; "" where all of the answer may be a call, None where no
            call has begun.
    """

    def __init__(
        self, syntax: CallSyntax | None, names: Iterable[str] = (), *, only_marked: bool = False
    ) -> None:
        self.held = ""
        self.mark: str | None = None
        self.marks = call_marks(syntax)
        self._syntax = syntax
        starts = (*_WHOLE_CALL_PREFIXES, *(f"{name}{{" for name in names))
        self._whole_call = () if only_marked else starts
        self._at_start = True

    @property
    def is_marked(self) -> bool:
        """Whether what is held begins with the mark of a call."""
        return bool(self.mark) or self.held.lstrip().startswith(self.marks)

    def feed(self, text: str) -> str:
        """The words that are certain after this piece."""
        self.held += text
        if self._at_start:
            self._read_start()
        if self._at_start or self.mark is not None:
            return ""
        found = first_call_mark(self.held, self._syntax)
        certain = self.held[: found[0]] if found else self._without_partial_mark()
        # Space before a call is no part of the words.
        words = certain.rstrip()
        self.held = self.held[len(words) :]
        self.mark = found[1] if found else None
        return words

    def resume(self, rest: str) -> None:
        """Go on after a call, with what was held behind it."""
        self.held, self.mark, self._at_start = rest, None, False

    def _read_start(self) -> None:
        """Before the first character: tell whether all of the answer may be a call."""
        beginning = self.held.lstrip()
        if beginning.startswith(self._whole_call):
            self.mark = ""
        elif any(start.startswith(beginning) for start in self._whole_call):
            return
        self._at_start = False

    def _without_partial_mark(self) -> str:
        """What is held, without what may be the beginning of a mark at its end."""
        held = self.held
        ends = (n for mark in self.marks for n in range(1, len(mark)) if held.endswith(mark[:n]))
        return held[: len(held) - max(ends, default=0)]
