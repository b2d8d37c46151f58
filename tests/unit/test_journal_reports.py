"""What a journal's entries come to, and what can be learned from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from edgesdk.hybrid.storage.journal import DecisionRecord, Journal, RecordedTexts
from edgesdk.hybrid.storage.journal_reports import totals_of, training_set

LOCAL = DecisionRecord(
    at=10.0, route="local", reason="sure enough", upload="redact", confidence=0.75
)
CLOUD = DecisionRecord(
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
        LOCAL,
        CLOUD,
        replace(CLOUD, at=5.0, reason="the device was unsure (0.12)"),
        replace(LOCAL, reason="the device was unsure (0.31); the cloud was busy (503)"),
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
    add(journal, CLOUD, "one", "first")
    add(journal, LOCAL, "two", None)
    add(journal, replace(CLOUD, finish_reason="length"), "three", "cut sh")
    add(journal, replace(CLOUD, finish_reason="incomplete"), "four", "cut")
    add(journal, CLOUD, "five", "fünf")
    add(journal, CLOUD, "one", "better")
    add(Journal(tmp_path / "j"), CLOUD, "six", "not kept")
    journal.append(CLOUD, prompt="own", texts=RecordedTexts("words, not messages", cloud="x"))
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
