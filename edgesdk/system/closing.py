"""Close an object at the end of a `with` block."""

from __future__ import annotations

from typing_extensions import Self


class Closeable:
    """Has a `close` method, which `with` calls at its end, whatever happened inside."""

    def close(self) -> None:
        """Free what the object holds; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
