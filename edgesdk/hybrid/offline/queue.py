"""An encrypted queue on the disk, shared by several processes, for requests of other times."""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from edgesdk.errors import EdgeError, InvalidOption, RequestError
from edgesdk.hybrid.cloud.spending import Cost
from edgesdk.hybrid.content import without_reasoning
from edgesdk.hybrid.offline.cipher import DecryptionFailed, QueueCipher, key_of_keyring
from edgesdk.hybrid.privacy.policy import Upload, UploadVerdict
from edgesdk.hybrid.remote import NoAnswerCause, NoCloudAnswer
from edgesdk.hybrid.reply import HybridReply
from edgesdk.hybrid.storage.database import Database
from edgesdk.options import Options, options_from
from edgesdk.request import Request
from edgesdk.system.closing import Closeable

_VERSION = 3
_TABLES = (
    # `proof` is encrypted with the key, so that a wrong one is noticed before anything is.
    "CREATE TABLE IF NOT EXISTS about (version INTEGER NOT NULL, name TEXT NOT NULL, proof BLOB)",
    "CREATE TABLE IF NOT EXISTS requests (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL,"
    " key TEXT NOT NULL, encrypted BLOB NOT NULL, lease TEXT,"
    " leased_until REAL NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, failed TEXT)",
)
_DAY = 86_400.0
# Another process may have longer leases than this one, but not so much longer.
_MAX_LEASES = 10
# Of a lease, what sending may take; the rest is for recording that it was done.
_SENDING_SHARE = 0.8
# The options that a cloud is told; the rest is the device's.
_CLOUD_OPTIONS = ("max_tokens", "stop", "temperature", "top_p", "seed")
_LOG = logging.getLogger("edgesdk.hybrid")


@dataclass(frozen=True)
class QueuedRequest:
    """What has to be known of a request to send it later.

    Attributes:
        messages: as they are, with all that is private.
        upload: the rule that held when it was made; a later one may be stricter, never looser.
        call: the rule that its call gave, if it gave one,
        tags: and the tags; both are judged again when it is sent.
    """

    messages: list[dict[str, Any]]
    options: Options
    upload: Upload
    call: Upload | None = None
    tags: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads; raises RequestError where a message is no JSON."""
        options = {name: getattr(self.options, name) for name in _CLOUD_OPTIONS}
        try:
            return json.dumps({**vars(self), "options": options}).encode("ascii")
        except (TypeError, ValueError) as error:
            raise RequestError(f"A message that is no JSON cannot wait: {error}.") from error


def queued_request(
    messages: list[dict[str, Any]], options: Options, verdict: UploadVerdict
) -> QueuedRequest:
    """Make a request with the verdict on it."""
    return QueuedRequest(
        without_reasoning(messages), options, verdict.upload, verdict.call, verdict.tags
    )


def from_bytes(data: bytes) -> QueuedRequest:
    """Read what `QueuedRequest.to_bytes` gave."""
    fields = json.loads(data)
    fields |= {"options": options_from(fields["options"]), "tags": tuple(fields["tags"])}
    return QueuedRequest(**fields)


@dataclass(frozen=True)
class QueueEntry:
    """A request in the queue, as far as it can be seen without the key.

    Attributes:
        id: ascending, and never given twice.
        at: when it was put there, in seconds since the epoch.
        attempts: how often it was answered, and paid for, without an answer of use.
        failed: why it is not sent any more; None where it is.
    """

    id: int
    at: float
    attempts: int = 0
    failed: str | None = None


@dataclass(frozen=True)
class DeferredReply:
    """The cloud's reply to a request that had to wait.

    Attributes:
        id: `HybridReply.queued` of the reply that the device gave meanwhile.
        asked_at: seconds since the epoch.
    """

    id: int
    asked_at: float
    messages: list[dict[str, Any]]
    reply: HybridReply


class OfflineQueue(Closeable):
    """Keeps requests that could not go to the cloud when they were made.

    The file has their texts encrypted (Fernet: AES-128-CBC with HMAC-SHA256). When they were made,
    how many there are and about how long they are can be seen in it. A request that is to stay on
    the device is never in it.

    Args:
        path: of the SQLite file.
        key: 32 bytes that the app keeps; None for one that the system's keyring keeps, made with
            the file.
        max_age: seconds after which a request is dropped.
        max_count: how many may wait; the oldest is dropped for a new one.
        max_attempts: how often a request may be paid for without an answer of use, such as an empty
            one. Then it has failed: it stays in `entries` until it is too old, without its text,
            and is not sent any more.
        lease: seconds for which whoever sends a request has it alone. One that was not done with
            it by then is taken to have died.
        clock: seconds since the epoch.

    Raises:
        InvalidOption: a limit is not positive, or the key has not 32 bytes.
        MissingExtra: cryptography, or without a key keyring, is not installed.
        RequestError: the file or the keyring cannot be used, or the file has another key.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        key: bytes | None = None,
        max_age: float = 7 * _DAY,
        max_count: int = 1_000,
        max_attempts: int = 3,
        lease: float = 300.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        limits = {"max_age": max_age, "max_count": max_count, "lease": lease}
        for name, value in {**limits, "max_attempts": max_attempts}.items():
            if not value > 0:
                raise InvalidOption(f"{name} must be more than 0, not {value}.")
        self._path = Path(path)
        self._max_age = max_age
        self._max_count = max_count
        self._max_attempts = max_attempts
        self._lease = lease
        self._clock = clock
        if key is not None:
            self._cipher = QueueCipher(key)
        with suppress(OSError):
            # What cannot be made here is explained by the next line.
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600, exist_ok=True)
        self._database = Database(
            self._path, name="The queue", hint="Move it away, or name another file."
        )
        try:
            self._prepare(key)
        except BaseException:
            self._database.close()
            raise

    def put(self, request: QueuedRequest) -> int:
        """Keep a request, and return its id.

        Raises:
            InvalidOption: it is to stay on the device.
            RequestError: it cannot be written.
        """
        if request.upload == "local_only":
            raise InvalidOption("A request that is to stay on the device does not wait to leave.")
        key, now = secrets.token_hex(16), self._clock()
        encrypted = self._cipher.encrypt(request.to_bytes(), key)
        with self._database.transaction() as database:
            number = database.execute(
                "INSERT INTO requests (at, key, encrypted) VALUES (?, ?, ?)", (now, key, encrypted)
            ).lastrowid
            self._drop_expired(database, now)
            dropped = database.execute(
                "DELETE FROM requests WHERE leased_until <= ? AND id NOT IN"
                " (SELECT id FROM requests ORDER BY id DESC LIMIT ?)",
                (now, self._max_count),
            ).rowcount
        if dropped:
            _LOG.warning("the queue was full, so its oldest %d went", dropped)
        assert number is not None, "an insert has a row"
        return number

    def entries(self) -> list[QueueEntry]:
        """Return what is in the queue, the oldest first; also what somebody is sending now, and
        what has failed."""
        with self._database.connection() as database:
            rows = database.execute(
                "SELECT id, at, attempts, failed FROM requests WHERE at > ? ORDER BY id",
                (self._clock() - self._max_age,),
            ).fetchall()
        return [QueueEntry(*row) for row in rows]

    def claim(self, *, after: int = 0) -> Claim | None:
        """Claim the oldest request after the id `after` that nobody is sending, so that nobody else
        sends it; None if there is none."""
        while True:
            lease, now = secrets.token_hex(16), self._clock()
            with self._database.transaction() as database:
                self._drop_expired(database, now)
                row = database.execute(
                    "SELECT id, at, attempts, key, encrypted FROM requests"
                    " WHERE leased_until <= ? AND id > ? AND failed IS NULL ORDER BY id LIMIT 1",
                    (now, after),
                ).fetchone()
                if row is None:
                    return None
                number, at, attempts, key, encrypted = row
                database.execute(
                    "UPDATE requests SET lease = ?, leased_until = ? WHERE id = ?",
                    (lease, now + self._lease, number),
                )
            try:
                request = from_bytes(self._cipher.decrypt(encrypted, key))
            except DecryptionFailed:
                # Somebody else wrote into the file.
                _LOG.warning("request %d of the queue was damaged, and went", number)
                self._end(number, lease, drop=True)
                continue
            entry = QueueEntry(number, at, attempts)
            return Claim(self, entry, request, key, lease, _SENDING_SHARE * self._lease)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _drop_expired(self, database: sqlite3.Connection, now: float) -> None:
        # The clock was set back: what seems to come from the future is of now, or it would wait, or
        # be somebody's, for as long as the clock was ahead.
        database.execute("UPDATE requests SET at = ? WHERE at > ?", (now, now))
        database.execute(
            "UPDATE requests SET leased_until = ? WHERE leased_until > ?",
            (now + self._lease, now + _MAX_LEASES * self._lease),
        )
        dropped = database.execute(
            "DELETE FROM requests WHERE at <= ? AND leased_until <= ?", (now - self._max_age, now)
        ).rowcount
        if dropped:
            _LOG.warning("%d requests waited for too long, and went", dropped)

    def _end(self, number: int, lease: str, *, drop: bool) -> bool:
        change = "DELETE FROM requests" if drop else "UPDATE requests SET leased_until = 0"
        with self._database.transaction() as database:
            done = database.execute(f"{change} WHERE id = ? AND lease = ?", (number, lease))
            return done.rowcount == 1

    def _count_attempt(self, number: int, lease: str, reason: str) -> bool:
        """Give a request up for now, or, after the last attempt, for good; return which."""
        with self._database.transaction() as database:
            database.execute(
                "UPDATE requests SET leased_until = 0, attempts = attempts + 1"
                " WHERE id = ? AND lease = ?",
                (number, lease),
            )
            failed = database.execute(
                "UPDATE requests SET failed = ?, encrypted = x'' WHERE id = ? AND lease = ?"
                " AND attempts >= ?",
                (reason, number, lease, self._max_attempts),
            )
            return failed.rowcount == 1

    def _prepare(self, key: bytes | None) -> None:
        with self._database.transaction() as database:
            # What was there is overwritten, not only forgotten.
            database.execute("PRAGMA secure_delete = ON")
            self._database.require_table(database, "requests")
            for statement in _TABLES:
                database.execute(statement)
            found = database.execute("SELECT version, name, proof FROM about").fetchone()
            if found is None:
                # The file is kept from others meanwhile, or each would make a key.
                name = secrets.token_hex(8)
                if key is None:
                    self._cipher = QueueCipher(key_of_keyring(name, make=True))
                proof = self._cipher.encrypt(b"", name)
                database.execute("INSERT INTO about VALUES (?, ?, ?)", (_VERSION, name, proof))
                return
        version, name, proof = found
        if version != _VERSION:
            raise RequestError(
                f"The queue {self._path} has version {version}; this edgesdk writes {_VERSION}.",
                hint="Use the edgesdk that wrote it, or name another file.",
            )
        if key is None:
            self._cipher = QueueCipher(key_of_keyring(name, make=False))
        try:
            self._cipher.decrypt(proof, name)
        except DecryptionFailed:
            raise RequestError(
                f"The queue {self._path} was written with another key.",
                hint="Give that key, or name another file.",
            ) from None


@dataclass(frozen=True)
class Claim:
    """A request that one caller has for itself. `done`, `release` or `unanswered` must follow.

    Attributes:
        key: the request's idempotency key, whoever sends it.
        seconds: to send it in.
    """

    queue: OfflineQueue
    entry: QueueEntry
    request: QueuedRequest
    key: str
    lease: str
    seconds: float

    def done(self) -> bool:
        """Take it out of the queue; False if it was not the caller's any more."""
        return self.queue._end(self.entry.id, self.lease, drop=True)

    def release(self) -> None:
        """Leave it in the queue, for a later time."""
        self.queue._end(self.entry.id, self.lease, drop=False)

    def unanswered(self, reason: str) -> bool:
        """It was paid for, and brought no answer of use: leave it for a later time, unless that was
        the last attempt. Return whether it was, so that the request has failed."""
        return self.queue._count_attempt(self.entry.id, self.lease, reason)


def defer(
    queue: OfflineQueue | None, cause: NoAnswerCause, request: Request, verdict: UploadVerdict
) -> int | None:
    """Put a request that got no whole answer into the queue, if there is one; return its id there.

    It is None where another time is no better. The checks of tools and output formats are the
    caller's, and do not outlive it, so requests with them are not queued.
    """
    if queue is None or cause != "away" or not request.is_plain:
        return None
    try:
        return queue.put(queued_request(request.messages, request.options, verdict))
    except RequestError as problem:
        _LOG.warning("a request was not kept for later: %s", problem)
        return None


def send_queued(
    queue: OfflineQueue, send: Callable[[QueuedRequest, float, str], HybridReply]
) -> Iterator[DeferredReply]:
    """Send what is in the queue, one request after the other, until the cloud is away.

    A request that cannot be paid now, or whose reply broke off, waits on. One that may not leave
    any more, or that no endpoint takes, is dropped. One that is paid for and answered with nothing
    of use is tried again a few times, and then has failed (`QueueEntry.failed`). A reply is out of
    the queue before it is given out: a process that dies in between has lost it, one that dies
    before has not, and the next one sends the same request with the same key.

    Args:
        send: takes a request, the seconds that it may take, and an idempotency key, which is the
            same each time; raises NoCloudAnswer.

    Raises:
        RequestError: the queue cannot be used.
    """
    reached = 0
    while (claim := queue.claim(after=reached)) is not None:
        entry, request = claim.entry, claim.request
        reached = entry.id
        try:
            reply = send(request, claim.seconds, claim.key)
        except NoCloudAnswer as error:
            _LOG.info("request %d of the queue: %s", entry.id, error)
            if error.cause in ("policy", "unfit"):
                claim.done()
                continue
            if error.cause == "failed" and error.cost != Cost():
                if claim.unanswered(str(error)):
                    _LOG.warning("request %d of the queue failed: %s", entry.id, error)
                continue
            claim.release()
            if error.cause == "away":
                return
            continue
        except EdgeError as error:
            # It waits on, and keeps no other waiting.
            _LOG.warning("request %d of the queue could not be sent: %s", entry.id, error)
            claim.release()
            continue
        except BaseException:
            claim.release()
            raise
        if reply.cloud is None or reply.cloud.broke_off:
            claim.release()
        elif claim.done():
            yield DeferredReply(entry.id, entry.at, request.messages, reply)
