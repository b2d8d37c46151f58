"""Records decisions in an append-only journal; makes totals and training sets of them."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from edgesdk.errors import RequestError
from edgesdk.hybrid.storage.database import Database

Route = Literal["local", "cloud", "audit"]


@dataclass(frozen=True)
class DecisionRecord:
    """Why a request was answered where it was. It has no text of the user's or the model's.

    Attributes:
        at: seconds since the epoch.
        route: who answered; "audit" where an answer of the device that was given already is
            compared with the cloud's.
        reason: why, in a few words of the SDK's own.
        upload: the privacy rule that held.
        kinds: of what the detectors found, in order.
        confidence: in the local answer, 0 to 1; None where none was made.
        signals: read off the local answer, by name.
        rejected_by: what kept the device from trying; see `edgesdk.hybrid.reply.HybridReply`.
        bundle: hash of the local model's bundle.
        endpoint: who answered in the cloud; empty where none did.
        predicted_wrong: the local answer is not to be kept, whatever its confidence; see
            `edgesdk.hybrid.reply.LocalDraft`.
        calibration: id of the one whose promise was audited; empty where there was none.
        agreed: whether the cloud's answer says the same as the local one; None where that was not
            audited, or could not be.
        prompt_tokens, output_tokens: of the answer that was given.
        money: that it cost, in the currency of the endpoint's prices.
        seconds: from the request to the end of the answer.
        finish_reason: why the reply that was given ended, in the words of who gave it; see
            `complete`.
        local_finish_reason: the same of the device's draft; empty where none was made.
    """

    at: float
    route: Route
    reason: str
    upload: str
    kinds: tuple[str, ...] = ()
    confidence: float | None = None
    signals: dict[str, float] = field(default_factory=dict)
    rejected_by: str = ""
    bundle: str = ""
    endpoint: str = ""
    predicted_wrong: bool = False
    calibration: str = ""
    agreed: bool | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    money: float = 0.0
    seconds: float = 0.0
    finish_reason: str = ""
    local_finish_reason: str = ""

    @property
    def complete(self) -> bool:
        """Whether the reply that was given is a whole one."""
        return self.finish_reason in ("stop", "tool_calls")

    @property
    def local_complete(self) -> bool:
        """Whether the device's draft is whole, as far as that was recorded."""
        of_reply = self.finish_reason if self.route == "local" else ""
        return (self.local_finish_reason or of_reply) in ("", "stop", "tool_calls")


@dataclass(frozen=True)
class RecordedTexts:
    """What the app chose to keep of a request, to learn from. None is not kept.

    Attributes:
        prompt: the messages as JSON.
        local, cloud: the answers.
        right: whether the local answer was, where somebody said.
    """

    prompt: str
    local: str | None = None
    cloud: str | None = None
    right: bool | None = None

    @property
    def messages(self) -> list[dict[str, Any]] | None:
        """The conversation; None where an app recorded something else as the prompt."""
        try:
            messages = json.loads(self.prompt)
        except ValueError:
            return None
        return messages if isinstance(messages, list) and messages else None


_ABOUT = "CREATE TABLE IF NOT EXISTS about (version INTEGER NOT NULL, salt BLOB NOT NULL)"
# Triggers keep rows from being changed, by a mistake rather than by an attacker.
_VERSION = 3
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
class JournalEntry:
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
    decision: DecisionRecord
    texts: RecordedTexts | None
    right: bool | None = None

    def to_json(self) -> dict[str, object]:
        """Return the entry as a JSON object, a line of an export."""
        entry: dict[str, object] = {"id": self.id, "prompt_hash": self.prompt}
        entry |= asdict(self.decision)
        entry["complete"] = self.decision.complete
        entry["right"] = self.right
        if self.texts is not None:
            entry["texts"] = asdict(self.texts)
        return entry


class Journal:
    """Records decisions in a SQLite file that several threads and processes may write.

    Args:
        keep_texts: also keep prompts and replies. Without it no raw text is written, whatever is
            handed over.

    Raises:
        RequestError: the file cannot be used, or another edgesdk wrote it.
    """

    def __init__(self, path: str | PathLike[str], *, keep_texts: bool = False) -> None:
        self._path = Path(path)
        self._keep_texts = keep_texts
        self._database = Database(
            path, name="The journal", hint="Move it away, or name another file."
        )
        with self._database.transaction() as database:
            self._salt = self._prepare(database)

    def append(
        self, decision: DecisionRecord, *, prompt: str, texts: RecordedTexts | None = None
    ) -> int:
        """Record a decision, and return its id. Of `prompt` only the hash is kept.

        Raises:
            RequestError: it could not be written.
        """
        stored_texts = json.dumps(asdict(texts)) if texts is not None and self._keep_texts else None
        row = (decision.at, self._hash(prompt), json.dumps(asdict(decision)), stored_texts)
        with self._database.connection() as database:
            number = database.execute(
                "INSERT INTO decisions (at, prompt, decision, texts) VALUES (?, ?, ?, ?)", row
            ).lastrowid
        assert number is not None, "an insert has a row"
        return number

    def label(self, id: int, right: bool) -> None:
        """Record whether the device's reply of entry `id` was right. Of several labels the newest
        counts; the earlier ones stay.

        Raises:
            RequestError: there is no such entry, or it could not be written.
        """
        with self._database.transaction() as database:
            if database.execute("SELECT 1 FROM decisions WHERE id = ?", (id,)).fetchone() is None:
                raise RequestError(f"The journal {self._path} has no entry {id}.")
            database.execute(
                "INSERT INTO labels (decision, is_right) VALUES (?, ?)", (id, int(right))
            )

    def entries(
        self, *, since: float = 0.0, route: Route | None = None, last: int | None = None
    ) -> Iterator[JournalEntry]:
        """Yield entries in order; they are read from the file as they are iterated.

        Args:
            since: seconds since the epoch.
            route: only those that were answered there.
            last: only so many, the newest of those.
        """
        entries = (
            entry
            for entry in self._read(since, newest_first=last is not None)
            if route is None or entry.decision.route == route
        )
        yield from entries if last is None else reversed(list(islice(entries, last)))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _read(self, since: float, *, newest_first: bool) -> Iterator[JournalEntry]:
        """Read page by page, so that a long journal fills no memory and keeps no writer out."""
        beyond, order = ("<", "DESC") if newest_first else (">", "ASC")
        reached = 2**63 - 1 if newest_first else 0
        while True:
            with self._database.connection() as database:
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
        """Create the tables if the file is new, and return its salt."""
        self._database.require_table(database, "decisions")
        database.execute(_ABOUT)
        about = database.execute("SELECT version, salt FROM about").fetchone()
        if about is None:
            about = (_VERSION, secrets.token_bytes(32))
            database.execute("INSERT INTO about VALUES (?, ?)", about)
        version, salt = about
        if version != _VERSION:
            raise RequestError(
                f"The journal {self._path} has version {version}; this edgesdk writes {_VERSION}.",
                hint="Use the edgesdk that wrote it, or name another file.",
            )
        for statement in _TABLES:
            database.execute(statement)
        return bytes(salt)


def _entry(row: tuple[int, str, str, str | None, int | None]) -> JournalEntry:
    number, prompt, decision, texts, label = row
    values = json.loads(decision)
    values["kinds"] = tuple(values["kinds"])
    stored_texts = None if texts is None else RecordedTexts(**json.loads(texts))
    right = stored_texts.right if label is None and stored_texts is not None else label
    return JournalEntry(
        number,
        prompt,
        DecisionRecord(**values),
        stored_texts,
        None if right is None else bool(right),
    )


# Confidences, which would make every reason one of its own.
_FIGURE = re.compile(r" \(\d+\.\d+\)")


@dataclass(frozen=True)
class JournalTotals:
    """Sums over entries.

    Attributes:
        local: how many were answered on the device.
        first_at, last_at: when the first and the last was asked, in seconds since the epoch.
        money: that they cost, in the currency of the endpoints' prices.
        cloud_tokens: of prompts and replies in the cloud, as far as counted.
        labelled: how many have a label.
        right: how many labels say that the device's reply was right.
        reasons: how often each was given, the most frequent first; without their figures.
    """

    entries: int = 0
    local: int = 0
    first_at: float | None = None
    last_at: float | None = None
    money: float = 0.0
    cloud_tokens: int = 0
    labelled: int = 0
    right: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def local_share(self) -> float | None:
        """The share that was answered on the device; None without entries."""
        return self.local / self.entries if self.entries else None


def totals_of(entries: Iterable[JournalEntry]) -> JournalTotals:
    """Sum over `entries`, reading each of them once."""
    count = local = tokens = labelled = right = 0
    money = 0.0
    first_at: float | None = None
    last_at: float | None = None
    reasons: Counter[str] = Counter()
    for entry in entries:
        decision = entry.decision
        count += 1
        first_at = decision.at if first_at is None else min(first_at, decision.at)
        last_at = decision.at if last_at is None else max(last_at, decision.at)
        money += decision.money
        if decision.route == "local":
            local += 1
        else:
            tokens += decision.prompt_tokens + decision.output_tokens
        labelled += entry.right is not None
        right += entry.right is True
        reasons[_FIGURE.sub("", decision.reason)] += 1
    return JournalTotals(
        count, local, first_at, last_at, money, tokens, labelled, right, dict(reasons.most_common())
    )


@dataclass(frozen=True)
class TrainingSet:
    """Conversations that end with the cloud's answer, and how many of its replies are left out.

    Attributes:
        examples: {"messages": [...]} each, as fine-tuning tools and the APIs of clouds take them.
        without_text: no text of them was kept.
        unfinished: they are incomplete.
        repeated: the same prompt was answered again later.
    """

    examples: list[dict[str, Any]]
    without_text: int
    unfinished: int
    repeated: int


def training_set(entries: Iterable[JournalEntry]) -> TrainingSet:
    """Collect the examples in `entries`, in the order in which their prompts came first.

    Only answers that the cloud finished are targets. Of several answers to the same prompt the
    newest is taken.
    """
    newest: dict[str, dict[str, Any]] = {}
    without_text = unfinished = repeated = 0
    for entry in entries:
        if entry.decision.route != "cloud":
            continue
        texts = entry.texts
        messages = None if texts is None else texts.messages
        if texts is None or messages is None or not texts.cloud:
            without_text += 1
        elif entry.decision.finish_reason != "stop":
            unfinished += 1
        else:
            repeated += entry.prompt in newest
            target = {"role": "assistant", "content": texts.cloud}
            newest[entry.prompt] = {"messages": [*messages, target]}
    return TrainingSet(list(newest.values()), without_text, unfinished, repeated)
