"""Server-sent events, read from bytes that arrive cut anywhere.

WHATWG HTML, section 9.2.6 "Interpreting an event stream"; only the `data` field is of use here.
"""

from __future__ import annotations

from collections.abc import Iterator

# A line of a chat completion is a few kilobytes; an endless one is an attack or an accident.
MOST_BYTES = 4 * 2**20


class EventTooLong(ValueError):
    """A line or an event went past `MOST_BYTES`. Never leaves the SDK."""


class EventReader:
    """Gives the data of each whole event; what is not finished by an empty line is none."""

    def __init__(self) -> None:
        self._bytes = b""
        self._lines: list[str] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[str]:
        """The data of events that `data` completes.

        Raises:
            EventTooLong: an event is too long.
            UnicodeDecodeError: a line is no UTF-8.
        """
        whole = self._bytes + data
        # A carriage return at the end may be half of a line break.
        held = b"\r" if whole.endswith(b"\r") else b""
        *lines, rest = (
            whole[: len(whole) - len(held)]
            .replace(b"\r\n", b"\n")
            .replace(b"\r", b"\n")
            .split(b"\n")
        )
        self._bytes = rest + held
        for line in lines:
            yield from self._line(line.decode("utf-8"))
        if self._size + len(self._bytes) > MOST_BYTES:
            raise EventTooLong

    def _line(self, line: str) -> Iterator[str]:
        if line == "":
            if self._lines:
                yield "\n".join(self._lines)
            self._lines, self._size = [], 0
            return
        name, _, value = line.partition(":")
        if name == "data":
            self._lines.append(value.removeprefix(" "))
            self._size += len(value)
