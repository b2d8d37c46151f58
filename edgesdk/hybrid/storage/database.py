"""A SQLite file that several threads and processes share."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from edgesdk.errors import RequestError
from edgesdk.system.forks import ForkGuard

_BUSY_SECONDS = 10.0


class Database:
    """One connection, used by one thread at a time.

    Args:
        path: of the file; None for memory.
        name: of what it is, as the beginning of an error's sentence.
        hint: what to do where it cannot be used.

    Raises:
        RequestError: it cannot be opened.
    """

    def __init__(self, path: str | PathLike[str] | None, *, name: str, hint: str) -> None:
        self._name = name if path is None else f"{name} {path}"
        self._hint = hint
        self._fork_guard = ForkGuard(self._name)
        self._guard = threading.Lock()
        with self._explained():
            if path is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                ":memory:" if path is None else path,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for single statements.

        Raises:
            RequestError: one failed, or this process is a fork of the one that opened the file.
        """
        self._fork_guard.check()
        with self._guard, self._explained():
            yield self._connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for a transaction, which an error takes back.

        Raises:
            RequestError: a statement failed, or another process was too long at it.
        """
        with self.connection() as connection:
            # Takes the write lock before reading, so that no other process writes in between.
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                # Where the disk is full, SQLite may have done so itself.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def require_table(self, connection: sqlite3.Connection, table: str) -> None:
        """Check that the file is new or has `table`: tables in somebody else's database would harm
        both."""
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        if rows and (table,) not in rows:
            raise RequestError(
                f"{self._name} cannot be used: it is another database.", hint=self._hint
            )

    def close(self) -> None:
        """Close the file; in a fork it is the parent's."""
        if self._fork_guard.crossed:
            return
        with self._guard:
            self._connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise RequestError(f"{self._name} cannot be used: {error}.", hint=self._hint) from error
