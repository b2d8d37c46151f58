"""Keeps conversations in a database: a tree of messages each, of which one path is shown.

Whatever is written is on the disk when the call returns, so that a crash loses no conversation.
An answer that was under way then is found again as far as it was written down.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgesdk_desktop.protocol import Privacy

State = Literal["complete", "cut", "stopped", "writing", "failed"]
Role = Literal["user", "assistant"]
_TITLE_LENGTH = 60
_STRICTNESS: tuple[Privacy, ...] = ("local_only", "ask", "redact")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS conversation (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, head TEXT, updated REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS message (
    id TEXT PRIMARY KEY,
    conversation TEXT NOT NULL REFERENCES conversation(id) ON DELETE CASCADE,
    parent TEXT, role TEXT NOT NULL, text TEXT NOT NULL, state TEXT NOT NULL,
    badge TEXT NOT NULL, created REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS children ON message (conversation, parent, created);
"""


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Attributes:
        head: the last message of the path that is shown; None before the first.
        updated: seconds since the epoch.
    """

    id: str
    title: str
    head: str | None
    updated: float


@dataclass(frozen=True)
class StoredMessage:
    """One message.

    Attributes:
        parent: the message before it; None for a first one. Messages with one parent are branches.
        state: "writing" while an answer is under way, and after a crash then.
        badge: of an answer: who gave it, and what it took.
    """

    id: str
    conversation: str
    parent: str | None
    role: Role
    text: str
    state: State
    badge: Mapping[str, Any] = field(default_factory=dict)

    @property
    def for_model(self) -> dict[str, str]:
        """The message as a model is given it."""
        return {"role": self.role, "content": self.text}


class ConversationStore:
    """Conversations in a SQLite file. One thread uses it.

    Attributes:
        damaged: where a file was put that could not be read; None where it could. Nothing of it is
            deleted.

    Raises:
        OSError, sqlite3.OperationalError: the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.damaged: Path | None = None
        try:
            self._open(path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            self._database.close()
            self.damaged = path.with_name(f"{path.stem}-damaged-{time.time_ns()}{path.suffix}")
            path.rename(self.damaged)
            self._open(path)

    def _open(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute("PRAGMA foreign_keys = ON")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def create(self) -> Conversation:
        """Start a conversation; it has no message yet."""
        made = Conversation(uuid.uuid4().hex, "New conversation", None, time.time())
        self._database.execute(
            "INSERT INTO conversation VALUES (?, ?, ?, ?)",
            (made.id, made.title, made.head, made.updated),
        )
        return made

    def find(self, query: str = "") -> list[Conversation]:
        """Conversations in whose title or messages `query` is found, the latest first."""
        wanted = "%" + query.strip().translate({ord(c): f"\\{c}" for c in "\\%_"}) + "%"
        rows = self._database.execute(
            "SELECT * FROM conversation WHERE title LIKE :q ESCAPE '\\' OR id IN"
            " (SELECT conversation FROM message WHERE text LIKE :q ESCAPE '\\')"
            " ORDER BY updated DESC",
            {"q": wanted},
        )
        return [Conversation(**row) for row in rows]

    def get(self, conversation: str) -> Conversation:
        """A conversation by its id; raises KeyError."""
        row = self._database.execute(
            "SELECT * FROM conversation WHERE id = ?", (conversation,)
        ).fetchone()
        if row is None:
            raise KeyError(conversation)
        return Conversation(**row)

    def rename(self, conversation: str, title: str) -> None:
        """Give it another title."""
        self._database.execute(
            "UPDATE conversation SET title = ? WHERE id = ?", (title.strip(), conversation)
        )

    def delete(self, conversation: str) -> None:
        """Delete it with all its messages."""
        self._database.execute("DELETE FROM conversation WHERE id = ?", (conversation,))

    def add(
        self, conversation: str, parent: str | None, role: Role, text: str, state: State
    ) -> StoredMessage:
        """Add a message after `parent`; it becomes the head."""
        made = StoredMessage(uuid.uuid4().hex, conversation, parent, role, text, state)
        now = time.time()
        with self._transaction():
            self._database.execute(
                "INSERT INTO message VALUES (?, ?, ?, ?, ?, ?, '{}', ?)",
                (made.id, conversation, parent, role, text, state, now),
            )
            self._database.execute(
                "UPDATE conversation SET head = ?, updated = ? WHERE id = ?",
                (made.id, now, conversation),
            )
            if parent is None and role == "user":
                whole = text.strip()
                title = whole.partition("\n")[0][:_TITLE_LENGTH]
                self.rename(conversation, title if title == whole else f"{title}…")
        return made

    def update(
        self, message: str, text: str, state: State, badge: Mapping[str, Any] | None = None
    ) -> None:
        """Write down what an answer is now."""
        self._database.execute(
            "UPDATE message SET text = ?, state = ?, badge = ? WHERE id = ?",
            (text, state, json.dumps(badge or {}), message),
        )

    def message(self, message: str) -> StoredMessage:
        """A message by its id; raises KeyError."""
        row = self._database.execute("SELECT * FROM message WHERE id = ?", (message,)).fetchone()
        if row is None:
            raise KeyError(message)
        return _message(row)

    def path(self, head: str | None) -> list[StoredMessage]:
        """The messages from the first one to `head`."""
        rows = self._database.execute(
            "WITH RECURSIVE path (id, parent, depth) AS ("
            " SELECT id, parent, 0 FROM message WHERE id = ?"
            " UNION ALL SELECT message.id, message.parent, depth + 1"
            " FROM message JOIN path ON message.id = path.parent)"
            " SELECT message.* FROM path JOIN message USING (id) ORDER BY depth DESC",
            (head,),
        )
        return [_message(row) for row in rows]

    def branches(self, message: StoredMessage) -> list[str]:
        """The ids of the messages that have the same parent, in the order of their making."""
        rows = self._database.execute(
            "SELECT id FROM message WHERE conversation = ? AND parent IS ? AND role = ?"
            " ORDER BY created, rowid",
            (message.conversation, message.parent, message.role),
        )
        return [row["id"] for row in rows]

    def show(self, message: str) -> None:
        """Show the path through `message`: it goes on with its latest messages."""
        found = self.message(message)
        head = message
        while row := self._database.execute(
            "SELECT id FROM message WHERE conversation = ? AND parent = ?"
            " ORDER BY created DESC, rowid DESC LIMIT 1",
            (found.conversation, head),
        ).fetchone():
            head = row["id"]
        self.set_head(found.conversation, head)

    def set_head(self, conversation: str, head: str | None) -> None:
        """Show the path to `head`."""
        self._database.execute(
            "UPDATE conversation SET head = ? WHERE id = ?", (head, conversation)
        )

    def money_spent(self) -> float:
        """What all answers of clouds have cost."""
        row = self._database.execute(
            "SELECT SUM(json_extract(badge, '$.money')) AS spent FROM message"
        ).fetchone()
        return float(row["spent"] or 0.0)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def _message(row: sqlite3.Row) -> StoredMessage:
    values = {name: row[name] for name in row.keys() if name != "created"}  # noqa: SIM118
    return StoredMessage(**{**values, "badge": json.loads(row["badge"])})


def messages_for_model(path: Sequence[StoredMessage]) -> list[dict[str, str]]:
    """Messages as a model is given them, without empty answers and their questions."""
    found: list[dict[str, str]] = []
    for message in path:
        if message.role == "assistant" and not message.text.strip():
            if found and found[-1]["role"] == "user":
                found.pop()
            continue
        found.append(message.for_model)
    return found


def strictest_privacy(path: Sequence[StoredMessage], chosen: Privacy) -> Privacy:
    """The strictest rule of all messages that would be sent: what was to stay here does."""
    rules = [m.badge["privacy"] for m in path if m.badge.get("privacy") in _STRICTNESS]
    return min([*rules, chosen], key=_STRICTNESS.index)
