"""What is closed at the end of a `with` block."""

from __future__ import annotations

from typing_extensions import Self


class Closeable:
    """`with` closes it, whatever happened inside."""

    def close(self) -> None:
        """Free what it holds; harmless where that was done."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
