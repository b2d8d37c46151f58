"""The progress of an export: how long the rest takes, and what a log shows of it."""

from __future__ import annotations

import io

from rich.console import Console
from rich.progress import Progress

from edgesdk.cli.output import StageProgressBar, StageTimer, _TimeLeft, format_seconds


def test_the_rest_takes_what_steps_took_so_far() -> None:
    clock = StageTimer(10, 100.0)
    assert clock.left(103.0) is None
    clock.advance(1, 104.0)
    assert clock.left(104.0) == 36.0
    clock.advance(2, 110.0)
    assert clock.left(110.0) == 40.0
    assert clock.left(113.0) == 37.0
    assert clock.left(500.0) == 0.0
    clock.advance(10, 190.0)
    assert clock.left(190.0) == 0.0


def test_steps_of_an_earlier_process_do_not_count_as_fast_ones() -> None:
    clock = StageTimer(28, 0.0)
    clock.advance(20, 0.1)
    assert (clock.found, clock.left(5.0)) == (20, None)
    clock.advance(21, 10.1)
    assert clock.left(10.1) == 70.0
    assert clock.spent(10.1) == 10.0


def test_what_comes_before_the_first_step_is_no_steps_time() -> None:
    clock = StageTimer(4, 0.0)
    clock.advance(0, 100.0)
    clock.advance(0, 105.0)
    assert clock.left(106.0) is None
    clock.advance(1, 110.0)
    assert (clock.found, clock.left(110.0)) == (0, 30.0)


def test_times_are_for_people() -> None:
    assert [format_seconds(s) for s in (0.4, 59.4, 60, 200, 3600, 7500)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "3 min 20 s",
        "1 h 00 min",
        "2 h 05 min",
    ]


def lines_of(steps: list[tuple[float, int]], total: int) -> list[str]:
    time, out = [0.0], io.StringIO()
    console = Console(file=out, width=200)
    with Progress(console=console, disable=True) as bar:
        stages = StageProgressBar(bar, console, lambda: time[0])
        stages.stage("Writing layers", total)
        for seconds, done in steps:
            time[0] = seconds
            stages.advance(done)
    return out.getvalue().splitlines()


def test_a_log_gets_a_line_now_and_then() -> None:
    assert lines_of([(5.0, 1), (12.0, 2), (15.0, 3), (120.0, 4)], 8) == [
        "Writing layers (8 steps)",
        "Writing layers 2/8, 12 s, about 36 s left",
        "Writing layers 4/8, 2 min 00 s, about 2 min 00 s left",
    ]


def test_a_log_says_what_was_finished_before() -> None:
    assert lines_of([(0.1, 5), (20.1, 6)], 7) == [
        "Writing layers (7 steps)",
        "Writing layers (5 were finished by the run before)",
        "Writing layers 6/7, 20 s, about 20 s left",
    ]


def test_a_note_is_seen_until_the_next_stage() -> None:
    time, out = [0.0], io.StringIO()
    console = Console(file=out, width=100)
    with Progress(console=console, disable=True) as bar:
        stages = StageProgressBar(bar, console, lambda: time[0])
        stages.stage("Training", 2)
        stages.note("loss 0.5")
        time[0] = 20.0
        stages.advance(1)
        stages.stage("Measuring", 2)
        time[0] = 40.0
        stages.advance(1)
    lines = out.getvalue().splitlines()
    assert lines[1] == "Training 1/2, 20 s, about 20 s left, loss 0.5"
    assert lines[3] == "Measuring 1/2, 20 s, about 20 s left"


def test_a_terminal_gets_a_bar_with_the_time_left() -> None:
    time, out = [0.0], io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    with Progress("{task.description}", _TimeLeft(), console=console) as bar:
        stages = StageProgressBar(bar, console, lambda: time[0])
        stages.stage("Writing layers", 4)
        time[0] = 30.0
        stages.advance(1)
        bar.refresh()
    assert "1 min 30 s left" in out.getvalue()
    assert "steps)" not in out.getvalue()
