"""Measuring speed: which tests run, what is timed, and how results are printed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from support.fake_engine import FakeEngine, fake_model

from edgesdk.benchmark import SpeedResult, SpeedTest, measure_speed, speed_tests
from edgesdk.cli import bench
from edgesdk.errors import InvalidOption


def test_the_tests_of_all_lengths_at_each_depth() -> None:
    names = [test.name for test in speed_tests([512, 64], [128, 0], [0, 1024])]
    assert names == [
        *("pp512", "pp64", "pp512 @ d1024", "pp64 @ d1024", "tg128", "tg128 @ d1024"),
    ]
    for lengths in ([0], [0], [0]), ([-1], [8], [0]):
        with pytest.raises(InvalidOption):
            speed_tests(*lengths)


def test_each_repetition_reads_or_writes_as_many_tokens_after_the_depth() -> None:
    extended: list[tuple[int, int]] = []
    engine = FakeEngine(context_length=64)
    make = engine.new_state

    def new_state() -> Any:
        state = make()
        extend = state.extend

        def recorded(tokens: Any, logits: Any = "last") -> Any:
            extended.append((len(state.tokens), len(tokens)))
            return extend(tokens, logits=logits)

        state.extend = recorded
        return state

    engine.new_state = new_state  # type: ignore[method-assign]
    results = list(
        measure_speed(fake_model(engine), [SpeedTest(8, 0, 4), SpeedTest(0, 2, 4)], repetitions=2)
    )
    # The depth once, a repetition to warm up, and two that count.
    assert extended == [(0, 4), *[(4, 8)] * 3, (0, 4), *[(4, 1), (5, 1)] * 3]
    assert [len(result.seconds) for result in results] == [2, 2]
    with pytest.raises(InvalidOption, match="pp64 needs 64 tokens; the context holds 32"):
        list(measure_speed(fake_model(FakeEngine(context_length=32)), [SpeedTest(64, 0, 0)]))


def test_figures_are_llama_benchs() -> None:
    figures = SpeedResult(SpeedTest(100, 0, 0), (0.5, 1.0)).figures()
    assert (figures["n_prompt"], figures["n_gen"], figures["avg_ts"]) == (100, 0, 150.0)
    assert figures["stddev_ts"] == pytest.approx(70.71, abs=0.01)
    assert (figures["avg_ns"], figures["samples_ns"]) == (750_000_000, [500_000_000, 10**9])


def test_the_command_prints_a_table_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: dict[str, Any] = {}

    def fake_load(name: str, **options: Any) -> Any:
        loaded.update(options)
        return fake_model(FakeEngine(context_length=options["context"]))

    monkeypatch.setattr("edgesdk.cli.model_options.load", fake_load)
    arguments = ["m", "-p", "8,16", "-n", "2", "-d", "4", "-r", "1"]
    table = CliRunner().invoke(bench.command, arguments)
    assert "pp16 @ d4" in table.output
    assert "tg2 @ d4" in table.output
    assert loaded["context"] == 21
    found = CliRunner().invoke(bench.command, [*arguments, "-o", "json"])
    assert [each["n_prompt"] for each in json.loads(found.stdout)] == [8, 16, 0]
    assert CliRunner().invoke(bench.command, ["m", "-p", "x"]).exit_code == 2
