"""Decisions are recorded for good, without anybody's words, to be summed up and learned from."""

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
from edgesdk.hybrid.storage.journal import (
    DecisionRecord,
    Journal,
    RecordedTexts,
    totals_of,
    training_set,
)

LOCAL = DecisionRecord(
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
CLOUD = DecisionRecord(
    at=2.5, route="cloud", reason="unsure", upload="allow", endpoint="m", money=0.01
)


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "journal.sqlite")
    assert [journal.append(LOCAL, prompt="a"), journal.append(CLOUD, prompt="b")] == [1, 2]
    journal.append(LOCAL, prompt="a")
    found = list(Journal(tmp_path / "new" / "journal.sqlite").entries())
    assert [entry.decision for entry in found] == [LOCAL, CLOUD, LOCAL]
    assert found[0].prompt == found[2].prompt != found[1].prompt
    assert [entry.id for entry in journal.entries(last=2)] == [2, 3]
    assert [entry.id for entry in journal.entries(since=2.0)] == [2]
    assert json.loads(json.dumps(found[0].to_json()))["signals"] == {"mean_log_probability": -0.25}


def test_no_text_is_kept_unless_the_app_wants_it(tmp_path: Path) -> None:
    texts = RecordedTexts(prompt='[{"content": "my secret plan"}]', local="an answer in words")
    path = tmp_path / "journal.sqlite"
    Journal(path).append(LOCAL, prompt="my secret plan", texts=texts)
    raw = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"secret" not in raw
    assert b"in words" not in raw
    Journal(path, keep_texts=True).append(LOCAL, prompt="my secret plan", texts=texts)
    assert [entry.texts for entry in Journal(path).entries()] == [None, texts]


def test_the_same_prompt_has_another_hash_elsewhere(tmp_path: Path) -> None:
    hashes = set()
    for name in ("a", "b"):
        journal = Journal(tmp_path / name)
        journal.append(LOCAL, prompt="yes")
        hashes |= {entry.prompt for entry in journal.entries()}
    assert len(hashes) == 2


@pytest.mark.parametrize("change", ["DELETE FROM decisions", "UPDATE decisions SET at = 0"])
def test_what_is_written_stays(tmp_path: Path, change: str) -> None:
    Journal(tmp_path / "j").append(LOCAL, prompt="a")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        sqlite3.connect(tmp_path / "j").execute(change)


def test_threads_and_two_openings_lose_nothing(tmp_path: Path) -> None:
    journals = [Journal(tmp_path / "j") for _ in range(2)]

    def write(number: int) -> None:
        for _ in range(10):
            journals[number % 2].append(LOCAL, prompt=str(number))

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
    Journal(tmp_path / "other")
    for version in (1, 9):
        with sqlite3.connect(tmp_path / "other") as database:
            database.execute("UPDATE about SET version = ?", (version,))
        with pytest.raises(RequestError, match=f"version {version}"):
            Journal(tmp_path / "other")


def test_a_label_comes_later_and_the_newest_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    first, second = journal.append(LOCAL, prompt="a"), journal.append(LOCAL, prompt="b")
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
    journal.label(journal.append(LOCAL, prompt="a"), True)
    for change in ("DELETE FROM labels", "UPDATE labels SET is_right = 0"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            sqlite3.connect(tmp_path / "j", isolation_level=None).execute(change)
    with pytest.raises(RequestError, match="no entry 2"):
        journal.label(2, True)


def test_a_label_that_came_with_the_texts_is_one_too(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", keep_texts=True)
    number = journal.append(LOCAL, prompt="a", texts=RecordedTexts("[]", right=False))
    assert [entry.right for entry in journal.entries()] == [False]
    journal.label(number, True)
    assert [entry.right for entry in journal.entries()] == [True]


def test_a_long_journal_is_read_page_by_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_file, "_PAGE", 5)
    journal = Journal(tmp_path / "j")
    for number in range(23):
        route = CLOUD if number % 3 == 0 else LOCAL
        journal.append(replace(route, at=float(number)), prompt=str(number))
    assert [entry.id for entry in journal.entries()] == list(range(1, 24))
    assert [entry.id for entry in journal.entries(route="cloud", last=4)] == [13, 16, 19, 22]
    assert [entry.id for entry in journal.entries(since=20.0, route="local")] == [21, 23]
    assert [entry.id for entry in journal.entries(last=15)] == list(range(9, 24))
    reading = journal.entries()
    next(reading)
    # A reader that is half-way keeps nobody from writing.
    assert Journal(tmp_path / "j").append(LOCAL, prompt="x") == 24
    assert len(list(reading)) == 23


def test_another_database_is_left_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "app") as database:
        database.execute("CREATE TABLE notes (text TEXT)")
    database.close()
    before = (tmp_path / "app").read_bytes()
    for opens in (Journal, lambda path: Budget(SpendingLimits(), path)):
        with pytest.raises(RequestError, match="another database"):
            opens(tmp_path / "app")
    assert (tmp_path / "app").read_bytes() == before


ON_DEVICE = DecisionRecord(
    at=10.0, route="local", reason="sure enough", upload="redact", confidence=0.75
)
IN_CLOUD = DecisionRecord(
    at=20.0,
    route="cloud",
    reason="the device was unsure (0.31)",
    upload="allow",
    prompt_tokens=7,
    output_tokens=5,
    money=0.25,
    finish_reason="stop",
)


def texts(prompt: str, cloud: str | None, right: bool | None = None) -> RecordedTexts:
    return RecordedTexts(json.dumps([{"role": "user", "content": prompt}]), "Maybe.", cloud, right)


def add(journal: Journal, decision: DecisionRecord, prompt: str, cloud: str | None) -> int:
    kept = texts(prompt, cloud)
    return journal.append(decision, prompt=kept.prompt, texts=kept)


def test_totals(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    assert totals_of(journal.entries()).local_share is None
    for decision in (
        ON_DEVICE,
        IN_CLOUD,
        replace(IN_CLOUD, at=5.0, reason="the device was unsure (0.12)"),
        replace(ON_DEVICE, reason="the device was unsure (0.31); the cloud was busy (503)"),
    ):
        journal.append(decision, prompt="a")
    journal.label(1, True)
    journal.label(4, False)
    found = totals_of(journal.entries())
    assert (found.entries, found.local, found.local_share) == (4, 2, 0.5)
    assert (found.first_at, found.last_at) == (5.0, 20.0)
    assert (found.money, found.cloud_tokens, found.labelled, found.right) == (0.5, 24, 2, 1)
    assert found.reasons == {
        "the device was unsure": 2,
        "sure enough": 1,
        "the device was unsure; the cloud was busy (503)": 1,
    }


def test_the_training_set_is_what_the_cloud_finished(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", keep_texts=True)
    add(journal, IN_CLOUD, "one", "first")
    add(journal, ON_DEVICE, "two", None)
    add(journal, replace(IN_CLOUD, finish_reason="length"), "three", "cut sh")
    add(journal, replace(IN_CLOUD, finish_reason="incomplete"), "four", "cut")
    add(journal, IN_CLOUD, "five", "fünf")
    add(journal, IN_CLOUD, "one", "better")
    add(Journal(tmp_path / "j"), IN_CLOUD, "six", "not kept")
    journal.append(IN_CLOUD, prompt="own", texts=RecordedTexts("words, not messages", cloud="x"))
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
