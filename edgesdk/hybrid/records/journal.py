"""An append-only log of decisions."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from edgesdk.errors import RequestError
from edgesdk.hybrid.database import Database
from edgesdk.hybrid.records.decision import Decision, Route, Texts

_ABOUT = "CREATE TABLE IF NOT EXISTS about (version INTEGER NOT NULL, salt BLOB NOT NULL)"
# Version 1 had no labels; a file of it becomes one of version 2 when it is opened. Triggers keep
# rows from being changed, by a mistake rather than by an attacker.
_VERSION = 2
_TABLES = (
    "CREATE TABLE IF NOT EXISTS decisions (id INTEGER PRIMARY KEY AUTOINCREMENT,"
    " at REAL NOT NULL, prompt TEXT NOT NULL, decision TEXT NOT NULL, texts TEXT)",
    "CREATE TABLE IF NOT EXISTS labels (id INTEGER PRIMARY KEY AUTOINCREMENT,"
    " decision INTEGER NOT NULL, is_right INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS labels_decision ON labels (decision)",
    "CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON decisions"
    " BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END",
    "CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON decisions"
    " BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END",
    "CREATE TRIGGER IF NOT EXISTS no_update_of_labels BEFORE UPDATE ON labels"
    " BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END",
    "CREATE TRIGGER IF NOT EXISTS no_delete_of_labels BEFORE DELETE ON labels"
    " BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END",
)
_ENTRY = (
    "SELECT id, prompt, decision, texts, (SELECT is_right FROM labels"
    " WHERE labels.decision = decisions.id ORDER BY labels.id DESC LIMIT 1) FROM decisions"
)
_PAGE = 500


@dataclass(frozen=True)
class Entry:
    """A decision as it was written.

    Attributes:
        id: ascending.
        prompt: a keyed hash of the prompt: the same for the same prompt in this journal, and
            nothing elsewhere.
        texts: where the app keeps them.
        right: whether the device's answer was, by the newest label; None where nobody said.
    """

    id: int
    prompt: str
    decision: Decision
    texts: Texts | None
    right: bool | None = None

    def to_json(self) -> dict[str, object]:
        """One object; a line of an export."""
        found: dict[str, object] = {"id": self.id, "prompt_hash": self.prompt}
        found |= asdict(self.decision)
        found["right"] = self.right
        if self.texts is not None:
            found["texts"] = asdict(self.texts)
        return found


class Journal:
    """A SQLite file that several threads and processes may write.

    Args:
        keep_texts: also keep prompts and answers. Without it no raw text is written, whatever is
            handed over.

    Raises:
        RequestError: the file cannot be used, or a newer edgesdk wrote it.
    """

    def __init__(self, path: Path, *, keep_texts: bool = False) -> None:
        self._path = path
        self._keep_texts = keep_texts
        self._database = Database(
            path, what="The journal", hint="Move it away, or name another file."
        )
        with self._database.writing() as database:
            self._salt = self._prepare(database)

    def append(self, decision: Decision, *, prompt: str, texts: Texts | None = None) -> int:
        """Write a decision down; its id. `prompt` itself is not kept, only its hash.

        Raises:
            RequestError: it could not be written.
        """
        kept = json.dumps(asdict(texts)) if texts is not None and self._keep_texts else None
        row = (decision.at, self._hash(prompt), json.dumps(asdict(decision)), kept)
        with self._database.reading() as database:
            done = database.execute(
                "INSERT INTO decisions (at, prompt, decision, texts) VALUES (?, ?, ?, ?)", row
            ).lastrowid
        assert done is not None, "an insert has a row"
        return done

    def label(self, id: int, right: bool) -> None:
        """Write down whether the device's answer of entry `id` was right. It may be said again:
        the newest label counts, and the earlier ones stay.

        Raises:
            RequestError: there is no such entry, or it could not be written.
        """
        with self._database.writing() as database:
            if database.execute("SELECT 1 FROM decisions WHERE id = ?", (id,)).fetchone() is None:
                raise RequestError(f"The journal {self._path} has no entry {id}.")
            database.execute(
                "INSERT INTO labels (decision, is_right) VALUES (?, ?)", (id, int(right))
            )

    def entries(
        self, *, since: float = 0.0, route: Route | None = None, last: int | None = None
    ) -> Iterator[Entry]:
        """Entries in order, read as they are asked for.

        Args:
            since: seconds since the epoch.
            route: only those that were answered there.
            last: only so many, the newest of those.
        """
        found = (
            entry
            for entry in self._read(since, newest_first=last is not None)
            if route is None or entry.decision.route == route
        )
        yield from found if last is None else reversed(list(islice(found, last)))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _read(self, since: float, *, newest_first: bool) -> Iterator[Entry]:
        """Page by page, so that a long journal neither fills the memory nor keeps writers out."""
        beyond, order = ("<", "DESC") if newest_first else (">", "ASC")
        reached = 2**63 - 1 if newest_first else 0
        while True:
            with self._database.reading() as database:
                rows = database.execute(
                    f"{_ENTRY} WHERE id {beyond} ? AND at >= ? ORDER BY id {order} LIMIT ?",
                    (reached, since, _PAGE),
                ).fetchall()
            for row in rows:
                yield _entry(row)
            if len(rows) < _PAGE:
                return
            reached = rows[-1][0]

    def _hash(self, prompt: str) -> str:
        return hmac.new(self._salt, prompt.encode("utf-8"), hashlib.sha256).hexdigest()

    def _prepare(self, database: sqlite3.Connection) -> bytes:
        """Make the file one of this version; its salt."""
        self._database.require(database, "decisions")
        database.execute(_ABOUT)
        found = database.execute("SELECT version, salt FROM about").fetchone()
        if found is None:
            found = (_VERSION, secrets.token_bytes(32))
            database.execute("INSERT INTO about VALUES (?, ?)", found)
        version, salt = found
        if version not in range(1, _VERSION + 1):
            raise RequestError(
                f"The journal {self._path} has version {version}; this edgesdk writes {_VERSION}.",
                hint="Update edgesdk, or name another file.",
            )
        for statement in _TABLES:
            database.execute(statement)
        if version < _VERSION:
            database.execute("UPDATE about SET version = ?", (_VERSION,))
        return bytes(salt)


def _entry(row: tuple[int, str, str, str | None, int | None]) -> Entry:
    number, prompt, decision, texts, label = row
    found = json.loads(decision)
    found["kinds"] = tuple(found["kinds"])
    kept = None if texts is None else Texts(**json.loads(texts))
    right = kept.right if label is None and kept is not None else label
    return Entry(number, prompt, Decision(**found), kept, None if right is None else bool(right))
