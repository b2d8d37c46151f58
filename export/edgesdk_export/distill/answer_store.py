"""Keep what an endpoint answered on disk, so that nothing is asked, or paid for, twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgesdk.hybrid.storage.database import Database

_TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)"


@dataclass(frozen=True)
class StoredAnswer:
    """An endpoint's answer to one request.

    Attributes:
        text: empty where the endpoint refused.
        reasoning: empty where it gave none.
        finish_reason: see `edgesdk.hybrid.cloud.cloud_reply.CloudReply`; "refused" where the
            endpoint does not take this request.
    """

    text: str
    reasoning: str
    finish_reason: str


class AnswerStore:
    """A file of answers, by what was asked of whom. Several threads and processes may use it.

    Raises:
        RequestError: the file cannot be used, or is another database.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(
            path, name="The answers' file", hint="Free some space, or name another output."
        )
        with self._database.transaction() as database:
            self._database.require_table(database, "answers")
            database.execute(_TABLE)

    def read(self, key: str) -> StoredAnswer | None:
        """The answer of a key; None where there is none yet."""
        with self._database.connection() as database:
            row = database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else StoredAnswer(**json.loads(row[0]))

    def write(self, key: str, answer: StoredAnswer) -> None:
        """Keep an answer; it is on the disk when this returns."""
        text = json.dumps(asdict(answer), ensure_ascii=False)
        with self._database.transaction() as database:
            database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, text))

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def answer_key(endpoints: Sequence[str], body: Mapping[str, Any], attempt: int) -> str:
    """What an answer is found by: who was asked, all that was sent, and which answer it is.

    Args:
        endpoints: names of the endpoints, in the order in which they are asked.
        body: of the request.
        attempt: from 0; answers to the same request differ where they are sampled.
    """
    asked = json.dumps([list(endpoints), body, attempt], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()
