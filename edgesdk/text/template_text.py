"""Track which characters of a prompt the chat template wrote, and which come from values.

A template mixes its own text with values: what users, tools and documents say. Only its own text
may make control tokens, so each character carries its origin through all that a template does. What
cannot be followed counts as a value, so that a mistake never lets a value make one.

llama.cpp's Jinja engine marks its inputs in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

# Where a character comes from. `ASSISTANT` is what the model itself has written before.
VALUE, TEMPLATE, ASSISTANT = 0, 1, 2


class TemplateText(str):
    """A text with the origin of each of its characters.

    Methods that cut, join or fill texts keep the origins. All others give a plain text, which
    counts as a value, unless everything that went in is the template's.

    Args:
        origins: one byte for each character; all are values by default.
    """

    origins: bytes

    def __new__(cls, text: object = "", origins: bytes | None = None) -> TemplateText:
        made = super().__new__(cls, text)
        if origins is None:
            origins = text.origins if isinstance(text, TemplateText) else bytes(len(made))
        made.origins = origins
        return made

    @property
    def plain(self) -> str:
        """The text alone."""
        return str.__str__(self)

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Its longest parts of one origin, in order: start, end, origin."""
        for found in re.finditer(rb"(.)\1*", self.origins, re.DOTALL):
            yield found.start(), found.end(), found[1][0]

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        return TemplateText(super().__mul__(times), self.origins * times.__index__())

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        named = values if isinstance(values, Mapping) else {}
        listed = values if isinstance(values, tuple) else () if named else (values,)
        return fill(
            self,
            lambda: self.plain % values,
            lambda args, named: self.plain % (named or args),
            listed,
            named,
        )

    def __getitem__(self, place: SupportsIndex | slice) -> str:
        part = super().__getitem__(place)
        if isinstance(place, slice):
            return TemplateText(part, self.origins[place])
        return TemplateText(part, bytes((self.origins[place],)))

    def __iter__(self) -> Iterator[str]:
        for place in range(len(self)):
            yield self[place]

    def join(self, items: Iterable[str]) -> str:
        listed = list(items)
        for item in listed:
            if not isinstance(item, str):
                raise TypeError(f"only texts can be joined, not {item!r}")
        parts = [part for item in listed for part in (self, item)]
        return concat(parts[1:])

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        return replace(self, old, new, count.__index__())

    def lstrip(self, characters: str | None = None, /) -> str:
        return self[len(self) - len(super().lstrip(characters)) :]

    def rstrip(self, characters: str | None = None, /) -> str:
        return self[: len(super().rstrip(characters))]

    def strip(self, characters: str | None = None, /) -> str:
        return self.lstrip(characters).rstrip(characters)

    def removeprefix(self, prefix: str, /) -> str:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> str:
        return self[: len(self) - len(suffix)] if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(super().rsplit(sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        whole = self._located(super().splitlines(keepends=True), "")
        lines = super().splitlines(keepends)
        return [line[: len(bare)] for line, bare in zip(whole, lines, strict=True)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        return self._parted(super().partition(sep))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        return self._parted(super().rpartition(sep))

    def upper(self) -> str:
        return self._cased(super().upper())

    def lower(self) -> str:
        return self._cased(super().lower())

    def casefold(self) -> str:
        return self._cased(super().casefold())

    def title(self) -> str:
        return self._cased(super().title())

    def capitalize(self) -> str:
        return self._cased(super().capitalize())

    def swapcase(self) -> str:
        return self._cased(super().swapcase())

    def _cased(self, text: str) -> str:
        if len(text) == len(self):
            return TemplateText(text, self.origins)
        # A letter became several ("ß"): where is not known.
        return from_template(text) if is_template(self) else text

    def _located(self, parts: list[str], sep: str | None) -> list[str]:
        """Find parts again that stand after each other, `sep` between them; None = whitespace."""
        found, at, plain = [], 0, self.plain
        for part in parts:
            if sep is None:
                at = plain.index(part, at)
            found.append(self[at : at + len(part)])
            at += len(part) + len(sep or "")
        return found

    def _parted(self, parts: tuple[str, str, str]) -> tuple[str, str, str]:
        head, sep, tail = self._located(list(parts), "")
        return head, sep, tail


def from_template(text: str) -> TemplateText:
    """A text that the template wrote, as a whole."""
    return TemplateText(text, bytes((TEMPLATE,)) * len(text))


def from_assistant(text: str) -> TemplateText:
    """A text that the model wrote, as a whole."""
    return TemplateText(text, bytes((ASSISTANT,)) * len(text))


def origins_of(text: str) -> bytes:
    """The origins of a text's characters; a plain text is a value."""
    return text.origins if isinstance(text, TemplateText) else bytes(len(text))


def is_template(text: str) -> bool:
    """Whether the template wrote all of it."""
    return isinstance(text, TemplateText) and not text.origins.strip(bytes((TEMPLATE,)))


def concat(parts: Iterable[str]) -> TemplateText:
    """Join texts, each with its origins."""
    listed = list(parts)
    return TemplateText("".join(listed), b"".join(map(origins_of, listed)))


def replace(text: str, old: str, new: str, count: int = -1) -> str:
    """`str.replace`; what is put in keeps its own origins."""
    if not isinstance(text, TemplateText) and not isinstance(new, TemplateText):
        return text.replace(old, new, count)
    tracked = TemplateText(text)
    if not old:
        replaced = tracked.plain.replace(old, new, count)
        return from_template(replaced) if is_template(text) and is_template(new) else replaced
    return TemplateText(new).join(tracked.split(old, count))


# Stand-ins for values while a format is filled: no text of a model has these characters by chance.
_HOLDER = "\U0010fc00{}\U0010fc01"
_HOLDERS = re.compile("\U0010fc00([0-9]+)\U0010fc01")


def fill(
    text: str,
    exact: Callable[[], str],
    filled: Callable[[tuple[Any, ...], Mapping[str, Any]], str],
    args: tuple[Any, ...],
    named: Mapping[str, Any],
) -> str:
    """Fill a format (`%` or `str.format`); values keep their own origins.

    Args:
        exact: fills it.
        filled: fills it with these values instead.
    """
    result = exact()
    values = [*args, *named.values()]
    if not is_template(text):
        return result
    if all(isinstance(value, int | float) for value in values):
        return from_template(result)
    holders = [
        _HOLDER.format(place) if isinstance(value, str) else value
        for place, value in enumerate(values)
    ]
    try:
        marked = filled(
            tuple(holders[: len(args)]), dict(zip(named, holders[len(args) :], strict=True))
        )
    except (TypeError, ValueError, LookupError, AttributeError):
        return result
    pieces = _HOLDERS.split(marked)
    parts = [
        values[int(piece)] if place % 2 else from_template(piece)
        for place, piece in enumerate(pieces)
    ]
    tracked = concat(parts)
    # A width, or an attribute of a value, makes another text: then nothing is known.
    return tracked if tracked.plain == result else result
