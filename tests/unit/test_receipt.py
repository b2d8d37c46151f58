"""A receipt says how an answer ended, what it took and what gave it."""

from __future__ import annotations

import dataclasses
import json

from edgesdk.engines.base import EngineInfo, Placement
from edgesdk.generation.finish import Finish
from edgesdk.overflow import Overflow
from edgesdk.receipt import Receipt, receipt_of

INFO = EngineInfo("fake 1", "auto", Placement("cpu"), 256, 4096, 0.5, threads=2)
FINISH = Finish("stop", (7, 8, 9), 20, 12, 0.5, 0.25, 3, 0.625, queue_seconds=1.5)


def receipt(**changes: object) -> Receipt:
    finish = dataclasses.replace(FINISH, **changes)  # type: ignore[arg-type]
    return receipt_of(finish, INFO, load_seconds=2.0)


def test_a_receipt_is_how_the_answer_ended_and_what_gave_it() -> None:
    found = receipt()
    assert all(
        getattr(found, field.name) == getattr(FINISH, field.name)
        for field in dataclasses.fields(Finish)
    )
    assert (found.engine, found.device, found.threads) == ("fake 1", "cpu", 2)
    assert (found.finish_reason, found.output_tokens, found.load_seconds) == ("stop", 3, 2.0)


def test_speed_is_that_of_the_tokens_after_the_first() -> None:
    assert receipt().tokens_per_second == 12
    assert receipt(decode_steps=0, decode_seconds=0.0).tokens_per_second is None


def test_no_speed_is_told_of_software_that_stands_for_a_device() -> None:
    simulated = dataclasses.replace(INFO, placement=Placement("qualcomm", in_software=True))
    found = receipt_of(FINISH, simulated, load_seconds=2.0)
    assert found.tokens_per_second is None
    assert "first token not measured · speed not measured" in found.line()


def test_figures_are_json_without_the_tokens_themselves() -> None:
    figures = receipt().figures()
    assert "tokens" not in figures
    assert figures["overflow"] is None
    assert json.loads(json.dumps(figures)) == figures
    shortened = dataclasses.replace(receipt(), overflow=Overflow("summarize", 2, 90, 40, 10))
    assert shortened.figures()["overflow"]["turns_dropped"] == 2


def test_a_line_tells_people_what_was_unusual_and_nothing_else() -> None:
    line = receipt(reason="length", drafted_tokens=4, accepted_tokens=1).line()
    for words in ("20 tokens in (12 cached), 3 out", "waited 1.50 s", "1 of 4 guesses right"):
        assert words in line
    assert line.endswith("fake 1 · ended by length")
    plain = receipt(queue_seconds=0.0).line()
    assert not any(word in plain for word in ("waited", "rested", "guesses", "ended by"))
