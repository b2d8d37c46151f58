"""What a flywheel makes of journals: private values hidden, prompts once, parts that stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from edgesdk_export.flywheel.examples import (
    Example,
    Shares,
    collect_examples,
    read_examples,
    write_examples,
)

from edgesdk.errors import RequestError
from edgesdk.hybrid.storage.journal import TrainingSet

SHARES = Shares(held_out=0.2, calibration=0.3)


def journal(*pairs: tuple[str, str], **counts: int) -> TrainingSet:
    examples = [
        {
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ]
        }
        for prompt, answer in pairs
    ]
    rest = {"without_text": 0, "unfinished": 0, "repeated": 0} | counts
    return TrainingSet(examples, **rest)


def all_of(divided: dict[str, list[Example]]) -> list[Example]:
    return [example for part in divided.values() for example in part]


def test_private_values_become_placeholders_in_prompt_and_answer() -> None:
    found = journal(("Write to ann.lee@example.com.", "I wrote to ann.lee@example.com today."))
    divided, _ = collect_examples([found], SHARES, near=0.9)
    [example] = all_of(divided)
    assert "ann.lee" not in example.to_line()
    placeholder = example.answer.split()[3]
    assert placeholder.startswith("<EMAIL_")
    assert placeholder in str(example.messages[0]["content"])


def test_the_same_prompt_of_two_devices_counts_once() -> None:
    one = journal(("Mail a@example.com?", "Old."), without_text=2, unfinished=1)
    two = journal(("Mail a@example.com?", "New."), repeated=3)
    divided, counts = collect_examples([one, two], SHARES, near=0.9)
    assert [example.answer for example in all_of(divided)] == ["New."]
    assert (counts.without_text, counts.unfinished, counts.repeated) == (2, 1, 4)


def test_what_is_held_out_stays_held_out() -> None:
    prompts = [(f"What is {number} times {number + 1}?", "?") for number in range(200)]
    first, counts = collect_examples([journal(*prompts[:100])], SHARES, near=0.95)
    later, _ = collect_examples([journal(*reversed(prompts))], SHARES, near=0.95)
    assert sum(counts.parts.values()) == 100
    for part, examples in first.items():
        assert {each.prompt_text for each in examples} <= {each.prompt_text for each in later[part]}
    shares = {part: len(examples) / 200 for part, examples in later.items()}
    assert shares["held_out"] == pytest.approx(0.2, abs=0.08)
    assert shares["profile"] == pytest.approx(0.15, abs=0.08)
    assert shares["calibration"] == pytest.approx(0.15, abs=0.08)


def test_nothing_near_a_held_out_prompt_is_learned() -> None:
    text = "How do the tides of the sea come about, and why are there two of them on number"
    held = next(
        each
        for each in (f"{text} {number}" for number in range(99))
        if SHARES.part_of(Example(({"role": "user", "content": each},), "")) == "held_out"
    )
    learned = next(
        each
        for each in (f"{held}{mark}" for mark in ("!", "?", ".", "..", "...", "!!", "??"))
        if SHARES.part_of(Example(({"role": "user", "content": each},), "")) == "training"
    )
    divided, counts = collect_examples([journal((learned, "a"), (held, "b"))], SHARES, near=0.9)
    assert [each.answer for each in all_of(divided)] == ["b"]
    assert counts.near == 1


def test_more_than_text_is_left_out() -> None:
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    found = journal(("See?", "Yes."))
    found.examples[0]["messages"].insert(
        0, {"role": "tool", "tool_call_id": "1", "content": picture}
    )
    divided, counts = collect_examples([found], SHARES, near=0.9)
    assert all_of(divided) == []
    assert counts.without_text == 1


def test_examples_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    example = Example(({"role": "system", "content": "s"}, {"role": "user", "content": "你"}), "好")
    write_examples(path, [example])
    assert read_examples(path) == [example]
    path.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(RequestError, match="line 2 is no prompt with an answer"):
        read_examples(path)
    path.write_text(json.dumps({"prompt": "a", "answer": "b"}))
    assert read_examples(path) == [Example(({"role": "user", "content": "a"},), "b")]
