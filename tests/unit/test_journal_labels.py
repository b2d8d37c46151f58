"""Labels that come later, journals of an older edgesdk, and what a journal comes to."""

from __future__ import annotations

import json
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from edgesdk.errors import RequestError
from edgesdk.hybrid.cloud.spending import Budget, SpendingLimits
from edgesdk.hybrid.storage import journal as journal_file
from edgesdk.hybrid.storage.journal import DecisionRecord, Journal, RecordedTexts
from edgesdk.hybrid.storage.journal_reports import totals_of, training_set

KEPT = DecisionRecord(
    at=10.0, route="local", reason="sure enough", upload="redact", confidence=0.75
)
SENT = DecisionRecord(
    at=20.0,
    route="cloud",
    reason="the device was unsure (0.31)",
    upload="allow",
    prompt_tokens=7,
    output_tokens=5,
    money=0.25,
    finish="stop",
)
# The file that the first edgesdk with a journal made.
VERSION_1 = """
CREATE TABLE about (version INTEGER NOT NULL, salt BLOB NOT NULL);
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, prompt TEXT NOT NULL,
    decision TEXT NOT NULL, texts TEXT
);
CREATE TRIGGER no_update BEFORE UPDATE ON decisions
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON decisions
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
INSERT INTO about VALUES (1, x'000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f');
"""
WRITTEN_BY_VERSION_1 = {
    "at": 5.0, "route": "local", "reason": "sure enough", "upload": "redact",
    "kinds": ["EMAIL"], "confidence": 0.5, "signals": {"length": 3.0}, "bundle": "ab",
    "endpoint": "", "prompt_tokens": 4, "output_tokens": 3, "money": 0.0, "seconds": 0.5,
}  # fmt: skip


def texts(prompt: str, cloud: str | None, right: bool | None = None) -> RecordedTexts:
    return RecordedTexts(json.dumps([{"role": "user", "content": prompt}]), "Maybe.", cloud, right)


def add(journal: Journal, decision: DecisionRecord, prompt: str, cloud: str | None) -> int:
    kept = texts(prompt, cloud)
    return journal.append(decision, prompt=kept.prompt, texts=kept)


def version_1(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.executescript(VERSION_1)
        kept = json.dumps({"prompt": "[]", "local": "yes", "cloud": None, "right": False})
        for row in (None, kept):
            database.execute(
                "INSERT INTO decisions (at, prompt, decision, texts) VALUES (5.0, 'hash', ?, ?)",
                (json.dumps(WRITTEN_BY_VERSION_1), row),
            )
    database.close()


def test_a_label_comes_later_and_the_newest_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    first, second = journal.append(KEPT, prompt="a"), journal.append(KEPT, prompt="b")
    journal.label(second, True)
    assert [entry.right for entry in journal.entries()] == [None, True]
    journal.label(second, False)
    journal.label(first, True)
    again = Journal(tmp_path / "j")
    assert [entry.right for entry in again.entries()] == [True, False]
    assert [entry.right for entry in again.entries(last=1)] == [False]
    assert [entry.to_json()["right"] for entry in again.entries()] == [True, False]


def test_a_label_is_a_row_that_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.label(journal.append(KEPT, prompt="a"), True)
    for change in ("DELETE FROM labels", "UPDATE labels SET is_right = 0"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            sqlite3.connect(tmp_path / "j", isolation_level=None).execute(change)
    with pytest.raises(RequestError, match="no entry 2"):
        journal.label(2, True)


def test_a_label_that_came_with_the_texts_is_one_too(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", keep_texts=True)
    number = journal.append(KEPT, prompt="a", texts=texts("a", None, right=False))
    assert [entry.right for entry in journal.entries()] == [False]
    journal.label(number, True)
    assert [entry.right for entry in journal.entries()] == [True]


def test_a_journal_of_version_1_loses_nothing(tmp_path: Path) -> None:
    version_1(tmp_path / "j")
    journal = Journal(tmp_path / "j")
    first, second = journal.entries()
    assert (first.prompt, first.right, second.right) == ("hash", None, False)
    assert first.decision.signals == {"length": 3.0}
    assert first.decision.kinds == ("EMAIL",)
    journal.label(first.id, True)
    # The salt is the old one, so that new hashes go with old ones.
    new = journal.append(KEPT, prompt="a")
    assert [entry.id for entry in journal.entries()] == [1, 2, new]
    with sqlite3.connect(tmp_path / "j") as database:
        ((version, salt),) = database.execute("SELECT version, salt FROM about").fetchall()
    # The edgesdk of version 1 refuses every other version, and says so.
    assert (version, salt) == (2, bytes(range(32)))


def test_openings_of_an_old_journal_at_once(tmp_path: Path) -> None:
    version_1(tmp_path / "j")
    opened: list[Journal] = []
    threads = [
        threading.Thread(target=lambda: opened.append(Journal(tmp_path / "j"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, journal in enumerate(opened):
        journal.label(1, number % 2 == 0)
    assert len(opened) == 6
    assert [entry.id for entry in opened[0].entries()] == [1, 2]


def test_a_long_journal_is_read_page_by_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_file, "_PAGE", 5)
    journal = Journal(tmp_path / "j")
    for number in range(23):
        route = SENT if number % 3 == 0 else KEPT
        journal.append(replace(route, at=float(number)), prompt=str(number))
    assert [entry.id for entry in journal.entries()] == list(range(1, 24))
    assert [entry.id for entry in journal.entries(route="cloud", last=4)] == [13, 16, 19, 22]
    assert [entry.id for entry in journal.entries(since=20.0, route="local")] == [21, 23]
    assert [entry.id for entry in journal.entries(last=15)] == list(range(9, 24))
    reading = journal.entries()
    next(reading)
    # A reader that is half-way keeps nobody from writing.
    assert Journal(tmp_path / "j").append(KEPT, prompt="x") == 24
    assert len(list(reading)) == 23


def test_totals(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    assert totals_of(journal.entries()).kept_share is None
    for decision in (
        KEPT,
        SENT,
        replace(SENT, at=5.0, reason="the device was unsure (0.12)"),
        replace(KEPT, reason="the device was unsure (0.31); the cloud was busy (503)"),
    ):
        journal.append(decision, prompt="a")
    journal.label(1, True)
    journal.label(4, False)
    found = totals_of(journal.entries())
    assert (found.entries, found.kept, found.kept_share) == (4, 2, 0.5)
    assert (found.begins, found.ends) == (5.0, 20.0)
    assert (found.money, found.cloud_tokens, found.labelled, found.right) == (0.5, 24, 2, 1)
    assert found.reasons == {
        "the device was unsure": 2,
        "sure enough": 1,
        "the device was unsure; the cloud was busy (503)": 1,
    }


def test_the_training_set_is_what_the_cloud_finished(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", keep_texts=True)
    add(journal, SENT, "one", "first")
    add(journal, KEPT, "two", None)
    add(journal, replace(SENT, finish="length"), "three", "cut sh")
    add(journal, replace(SENT, finish="incomplete"), "four", "cut")
    add(journal, SENT, "five", "fünf")
    add(journal, SENT, "one", "better")
    add(Journal(tmp_path / "j"), SENT, "six", "not kept")
    journal.append(SENT, prompt="own", texts=RecordedTexts("words, not messages", cloud="x"))
    found = training_set(journal.entries())
    assert found.examples == [
        {
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": target},
            ]
        }
        for prompt, target in (("one", "better"), ("five", "fünf"))
    ]
    assert (found.without_text, found.unfinished, found.repeated) == (2, 2, 1)


def test_another_database_is_left_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "app") as database:
        database.execute("CREATE TABLE notes (text TEXT)")
    database.close()
    before = (tmp_path / "app").read_bytes()
    for opens in (Journal, lambda path: Budget(SpendingLimits(), path)):
        with pytest.raises(RequestError, match="another database"):
            opens(tmp_path / "app")
    assert (tmp_path / "app").read_bytes() == before
