"""An append-only log of decisions."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from edgesdk.errors import RequestError
from edgesdk.hybrid.records.decision import Decision, Texts

# Version 1. Triggers keep rows from being changed, by a mistake rather than by an attacker.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (version INTEGER NOT NULL, salt BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS decisions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, prompt TEXT NOT NULL,
    decision TEXT NOT NULL, texts TEXT
);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON decisions
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON decisions
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
"""
_VERSION = 1
_BUSY_SECONDS = 10.0


@dataclass(frozen=True)
class Entry:
    """A decision as it was written.

    Attributes:
        id: ascending.
        prompt: a keyed hash of the prompt: the same for the same prompt in this journal, and
            nothing elsewhere.
        texts: where the app keeps them.
    """

    id: int
    prompt: str
    decision: Decision
    texts: Texts | None

    def to_json(self) -> dict[str, object]:
        """One object; a line of an export."""
        found: dict[str, object] = {"id": self.id, "prompt_hash": self.prompt}
        found |= asdict(self.decision)
        if self.texts is not None:
            found["texts"] = asdict(self.texts)
        return found


class Journal:
    """A SQLite file that several threads and processes may write.

    Args:
        keep_texts: also keep prompts and answers. Without it no raw text is written, whatever is
            handed over.

    Raises:
        RequestError: the file cannot be used.
    """

    def __init__(self, path: Path, *, keep_texts: bool = False) -> None:
        self._path = path
        self._keep_texts = keep_texts
        self._guard = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._database.executescript(_SCHEMA)
            self._salt = self._about()
        except (sqlite3.Error, OSError) as error:
            raise RequestError(
                f"The journal {path} cannot be used: {error}.",
                hint="Move it away, or name another file.",
            ) from error

    def append(self, decision: Decision, *, prompt: str, texts: Texts | None = None) -> int:
        """Write a decision down; its id. `prompt` itself is not kept, only its hash.

        Raises:
            RequestError: it could not be written.
        """
        kept = json.dumps(asdict(texts)) if texts is not None and self._keep_texts else None
        row = (decision.at, self._hash(prompt), json.dumps(asdict(decision)), kept)
        try:
            with self._guard:
                done = self._database.execute(
                    "INSERT INTO decisions (at, prompt, decision, texts) VALUES (?, ?, ?, ?)", row
                )
        except sqlite3.Error as error:
            raise RequestError(f"The journal {self._path} cannot be written: {error}.") from error
        assert done.lastrowid is not None, "an insert has a row"
        return done.lastrowid

    def entries(self, *, since: float = 0.0, last: int | None = None) -> Iterator[Entry]:
        """Entries in order.

        Args:
            since: seconds since the epoch.
            last: only so many, the newest.
        """
        limit = -1 if last is None else last
        with self._guard:
            rows = self._database.execute(
                "SELECT id, prompt, decision, texts FROM decisions WHERE at >= ?"
                " ORDER BY id DESC LIMIT ?",
                (since, limit),
            ).fetchall()
        for number, prompt, decision, texts in reversed(rows):
            found = json.loads(decision)
            found["kinds"] = tuple(found["kinds"])
            kept = None if texts is None else Texts(**json.loads(texts))
            yield Entry(number, prompt, Decision(**found), kept)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _hash(self, prompt: str) -> str:
        return hmac.new(self._salt, prompt.encode("utf-8"), hashlib.sha256).hexdigest()

    def _about(self) -> bytes:
        self._database.execute("BEGIN IMMEDIATE")
        found = self._database.execute("SELECT version, salt FROM about").fetchone()
        if found is None:
            found = (_VERSION, secrets.token_bytes(32))
            self._database.execute("INSERT INTO about VALUES (?, ?)", found)
        self._database.execute("COMMIT")
        version, salt = found
        if version != _VERSION:
            raise RequestError(
                f"The journal {self._path} has version {version}; this edgesdk writes {_VERSION}.",
                hint="Update edgesdk, or name another file.",
            )
        return bytes(salt)
