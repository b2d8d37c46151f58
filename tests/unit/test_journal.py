"""Decisions are written down for good, and without anybody's words."""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path

import pytest

from edgesdk.errors import RequestError
from edgesdk.hybrid.storage.journal import DecisionRecord, Journal, RecordedTexts

KEPT = DecisionRecord(
    at=1.5,
    route="local",
    reason="confident",
    upload="redact",
    kinds=("EMAIL", "IBAN"),
    confidence=0.75,
    signals={"mean_log_probability": -0.25},
    bundle="ab" * 32,
    prompt_tokens=12,
    output_tokens=3,
    seconds=0.5,
)
SENT = DecisionRecord(
    at=2.5, route="cloud", reason="unsure", upload="allow", endpoint="m", money=0.01
)


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "journal.sqlite")
    assert [journal.append(KEPT, prompt="a"), journal.append(SENT, prompt="b")] == [1, 2]
    journal.append(KEPT, prompt="a")
    found = list(Journal(tmp_path / "new" / "journal.sqlite").entries())
    assert [entry.decision for entry in found] == [KEPT, SENT, KEPT]
    assert found[0].prompt == found[2].prompt != found[1].prompt
    assert [entry.id for entry in journal.entries(last=2)] == [2, 3]
    assert [entry.id for entry in journal.entries(since=2.0)] == [2]
    assert json.loads(json.dumps(found[0].to_json()))["signals"] == {"mean_log_probability": -0.25}


def test_no_text_is_kept_unless_the_app_wants_it(tmp_path: Path) -> None:
    texts = RecordedTexts(prompt='[{"content": "my secret plan"}]', local="an answer in words")
    path = tmp_path / "journal.sqlite"
    Journal(path).append(KEPT, prompt="my secret plan", texts=texts)
    raw = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"secret" not in raw
    assert b"in words" not in raw
    Journal(path, keep_texts=True).append(KEPT, prompt="my secret plan", texts=texts)
    assert [entry.texts for entry in Journal(path).entries()] == [None, texts]


def test_the_same_prompt_has_another_hash_elsewhere(tmp_path: Path) -> None:
    hashes = set()
    for name in ("a", "b"):
        journal = Journal(tmp_path / name)
        journal.append(KEPT, prompt="yes")
        hashes |= {entry.prompt for entry in journal.entries()}
    assert len(hashes) == 2


@pytest.mark.parametrize("change", ["DELETE FROM decisions", "UPDATE decisions SET at = 0"])
def test_what_is_written_stays(tmp_path: Path, change: str) -> None:
    Journal(tmp_path / "j").append(KEPT, prompt="a")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        sqlite3.connect(tmp_path / "j").execute(change)


def test_threads_and_two_openings_lose_nothing(tmp_path: Path) -> None:
    journals = [Journal(tmp_path / "j") for _ in range(2)]

    def write(number: int) -> None:
        for _ in range(10):
            journals[number % 2].append(KEPT, prompt=str(number))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = list(journals[0].entries())
    assert len(found) == 60
    assert len({entry.prompt for entry in found}) == 6


def test_files_that_are_no_journal(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database " * 100)
    with pytest.raises(RequestError, match="cannot be used"):
        Journal(tmp_path / "text")
    Journal(tmp_path / "later")
    with sqlite3.connect(tmp_path / "later") as database:
        database.execute("UPDATE about SET version = 9")
    with pytest.raises(RequestError, match="version 9"):
        Journal(tmp_path / "later")
