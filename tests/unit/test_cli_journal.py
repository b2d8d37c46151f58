"""`edgesdk journal`: its table, its lines of JSON, its exports, its refusals."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.command_line import edgesdk_here

from edgesdk.hybrid.storage.journal import DecisionRecord, Journal, RecordedTexts
from edgesdk.hybrid.storage.parquet import read_parquet

NOW = time.time()
KEPT = DecisionRecord(
    at=NOW - 3 * 86_400, route="local", reason="sure enough", upload="redact", confidence=0.81,
    prompt_tokens=1_000, output_tokens=234, seconds=1.25, finish_reason="stop",
)  # fmt: skip
SENT = DecisionRecord(
    at=NOW - 60, route="cloud", reason="the device was unsure (0.31)", upload="redact",
    confidence=0.31, endpoint="big at host", prompt_tokens=7, output_tokens=5, money=0.0125,
    seconds=2.0, finish_reason="stop",
)  # fmt: skip


class Shell:
    """Runs `edgesdk journal` on a journal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "app.journal"

    def __call__(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        home = self.folder / "home"
        return edgesdk_here("journal", str(self.path), *arguments, home=home, expect=expect)

    def lines(self, *arguments: str) -> list[Any]:
        return [json.loads(line) for line in self(*arguments, "--json").stdout.splitlines()]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    found = Shell(tmp_path)
    journal = Journal(found.path, keep_texts=True)
    for number in range(3):
        prompt = json.dumps([{"role": "user", "content": f"帮 {number % 2}\n"}])
        journal.append(KEPT, prompt=prompt, texts=RecordedTexts(prompt, "Nein.", None))
        journal.append(SENT, prompt=prompt, texts=RecordedTexts(prompt, "Nein.", f"Ja {number}."))
    journal.label(1, True)
    journal.label(3, False)
    journal.close()
    return found


def test_a_table_for_people(shell: Shell) -> None:
    out = shell().stdout
    heading, *rows = out.partition("\n\n")[0].splitlines()
    assert heading.split() == [
        "ID", "TIME", "ROUTE", "SURE", "TOKENS", "COST", "SECONDS", "RIGHT", "REASON",
    ]  # fmt: skip
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert rows[0].split()[3:] == ["local", "0.81", "1,234", "-", "1.2", "yes", "sure", "enough"]
    assert rows[1].endswith("the device was unsure (0.31) (big at host)")
    totals = out.partition("\n\n")[2]
    assert "6 entries" in totals
    assert "device  3 (50.0%)" in totals
    assert "cloud   3, 36 tokens" in totals
    assert "cost    0.037500\n" in totals
    assert "right   1 of 2" in totals
    assert "3 the device was unsure\n" in totals
    # Texts stay out of what is shown.
    assert "Nein" not in out
    assert "帮" not in out


def test_lines_of_json_and_filters(shell: Shell) -> None:
    every = shell.lines()
    assert [line["id"] for line in every] == [1, 2, 3, 4, 5, 6]
    assert every[1]["prompt_hash"] == every[0]["prompt_hash"] != every[2]["prompt_hash"]
    assert every[1]["texts"]["cloud"] == "Ja 0."
    assert [line["right"] for line in every] == [True, None, False, None, None, None]
    assert [line["id"] for line in shell.lines("--route", "cloud", "--last", "2")] == [4, 6]
    assert [line["id"] for line in shell.lines("--since", "12h")] == [2, 4, 6]
    assert [line["id"] for line in shell.lines("--since", "2000-01-01")] == [1, 2, 3, 4, 5, 6]
    assert shell.lines("--since", "2000-01-01", "--since", "9999-01-01") == []


def test_totals(shell: Shell) -> None:
    found = json.loads(shell("--totals", "--json").stdout)
    assert (found["entries"], found["local"], found["local_share"]) == (6, 3, 0.5)
    assert found["reasons"] == {"sure enough": 3, "the device was unsure": 3}
    assert "ROUTE" not in shell("--totals").stdout
    assert "none fits" in shell("--since", "9999-01-01").stdout


def test_the_newest_of_a_long_journal(shell: Shell) -> None:
    journal = Journal(shell.path)
    for number in range(30):
        journal.append(replace(KEPT, reason=f"\x1b[2Jreason {number}"), prompt="x")
    out = shell().stdout
    assert "\x1b" not in out
    assert "The newest 20" in out
    assert "36 entries" in out
    assert out.splitlines()[1].split()[0] == "17"
    assert "reason 0" in out
    assert len(shell("--last", "25").stdout.partition("\n\n")[0].splitlines()) == 26


def test_an_export_is_every_line(shell: Shell) -> None:
    there = shell.folder / "all.jsonl"
    assert "6 lines" in shell("--export", str(there)).stdout
    found = [json.loads(line) for line in there.read_text("utf-8").splitlines()]
    assert found == shell.lines()
    again = shell("--export", str(there), "--last", "1", expect=1)
    assert "exists already" in again.stderr
    assert len(there.read_text("utf-8").splitlines()) == 6
    nowhere = shell("--export", str(shell.folder / "no" / "all.jsonl"), expect=1)
    assert "cannot be written" in nowhere.stderr
    # Nothing half-written is left, and the journal itself cannot be written over.
    assert "exists already" in shell("--export", str(shell.path), expect=1).stderr
    assert {path.name for path in shell.folder.iterdir()} <= {"app.journal", "all.jsonl", "home"}


def test_a_training_set_of_the_clouds_answers(shell: Shell) -> None:
    there = shell.folder / "train.jsonl"
    report = json.loads(shell("--training", str(there), "--json").stdout)
    assert report == {
        "path": str(there), "lines": 2, "without_text": 0, "unfinished": 0, "repeated": 1,
    }  # fmt: skip
    found = [json.loads(line) for line in there.read_text("utf-8").splitlines()]
    assert [[message["content"] for message in one["messages"]] for one in found] == [
        ["帮 0\n", "Ja 2."],
        ["帮 1\n", "Ja 1."],
    ]
    failed = shell("--training", str(shell.folder / "b.jsonl"), "--route", "local", expect=1)
    assert "nothing to learn from" in failed.stderr
    assert not (shell.folder / "b.jsonl").exists()


def test_wrong_use(shell: Shell) -> None:
    assert "no time" in shell("--since", "yesterday", expect=2).stderr
    assert "--totals" in shell("--totals", "--export", "x", expect=2).stderr
    shell.path.unlink()
    assert "no journal" in shell(expect=1).stderr
    assert not shell.path.exists()
    shell.path.write_text("these are words, not a database " * 50)
    assert "cannot be used" in shell(expect=1).stderr


def test_parquet_for_other_tools(shell: Shell) -> None:
    path = shell.folder / "device.parquet"
    assert "6 lines" in shell("--parquet", str(path)).stdout
    entries = list(read_parquet(path))
    assert [entry.right for entry in entries] == [True, None, False, None, None, None]
    assert entries[1].texts is not None
    assert entries[1].texts.cloud == "Ja 0."
    refused = shell("--parquet", str(path), "--totals", expect=2)
    assert "--parquet" in refused.stderr
