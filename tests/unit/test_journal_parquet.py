"""Journals as Parquet: what is written comes back, and DuckDB joins those of several devices."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow.parquet
import pytest

from edgesdk.errors import RequestError
from edgesdk.hybrid.storage.journal import DecisionRecord, Journal, RecordedTexts, training_set
from edgesdk.hybrid.storage.parquet import read_parquet, write_parquet

SENT = DecisionRecord(
    at=1_700_000_000.25, route="cloud", reason="the device was unsure (0.31)", upload="redact",
    kinds=("EMAIL",), confidence=0.31, signals={"log_odds": -1.5}, endpoint="big at host",
    prompt_tokens=7, output_tokens=5, money=0.0125, seconds=2.0, finish_reason="stop",
)  # fmt: skip


def asked(text: str) -> str:
    return json.dumps([{"role": "user", "content": text}])


def exported(folder: Path, device: str, answers: dict[str, str]) -> Path:
    """The journal of a device that the cloud gave these answers, as Parquet."""
    journal = Journal(folder / f"{device}.db", keep_texts=True)
    for text, answer in answers.items():
        texts = RecordedTexts(asked(text), "?", answer)
        journal.append(SENT, prompt=asked(text), texts=texts)
    path = folder / f"{device}.parquet"
    assert write_parquet(path, journal.entries()) == len(answers)
    journal.close()
    return path


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "app.db", keep_texts=True)
    texts = RecordedTexts(asked("你好"), "local", None)
    journal.append(SENT, prompt="a", texts=texts)
    journal.append(replace(SENT, route="audit", agreed=False, confidence=None), prompt="b")
    journal.label(2, True)
    path = tmp_path / "app.parquet"
    assert write_parquet(path, journal.entries()) == 2
    assert list(read_parquet(path)) == list(journal.entries())
    with pytest.raises(RequestError, match="exists already"):
        write_parquet(path, journal.entries())


def test_a_stopped_export_leaves_nothing(tmp_path: Path) -> None:
    def breaks():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        write_parquet(tmp_path / "app.parquet", breaks())
    assert list(tmp_path.iterdir()) == []


def test_duckdb_joins_three_devices_into_one_training_set(tmp_path: Path) -> None:
    exported(tmp_path, "one", {"Is it 4?": "Yes.", "Is it 5?": "No."})
    exported(tmp_path, "two", {"Is it 5?": "No.", "Is it 6?": "No."})
    exported(tmp_path, "three", {"Is it 7?": "No."})
    joined = tmp_path / "joined.parquet"
    # The same prompt has another hash on each device; its text is the same.
    duckdb.sql(
        f"""COPY (
            SELECT DISTINCT ON (texts.prompt) * FROM
            read_parquet('{tmp_path}/*.parquet', filename = 'device')
            WHERE route = 'cloud' AND texts.cloud IS NOT NULL ORDER BY texts.prompt, "at"
        ) TO '{joined}' (FORMAT parquet)"""
    )
    found = training_set(read_parquet(joined))
    questions = sorted(example["messages"][0]["content"] for example in found.examples)
    assert questions == ["Is it 4?", "Is it 5?", "Is it 6?", "Is it 7?"]
    assert {example["messages"][-1]["content"] for example in found.examples} == {"Yes.", "No."}


@pytest.mark.parametrize("kind", ["text", "other"])
def test_another_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    if kind == "text":
        path.write_text("no Parquet at all")
        said = "cannot be read as Parquet"
    else:
        table = pyarrow.Table.from_pylist([{"id": 1}])
        pyarrow.parquet.write_table(table, path)
        said = "has no column agreed"
    with pytest.raises(RequestError, match=said):
        list(read_parquet(path))
