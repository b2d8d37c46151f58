"""Every benchmark can be imported and says how it is used."""

from __future__ import annotations

import importlib
import pkgutil

import click
import pytest
from click.testing import CliRunner

import benchmarks

MODULES = sorted(info.name for info in pkgutil.walk_packages(benchmarks.__path__, "benchmarks."))
COMMANDS = {
    *("benchmarks.export.memory", "benchmarks.hybrid.__main__", "benchmarks.quality.__main__"),
    *("benchmarks.speed.concurrency", "benchmarks.speed.decode_speed"),
    *("benchmarks.speed.engine_overhead", "benchmarks.speed.second_turn", "benchmarks.speed.soak"),
    *("benchmarks.speed.speculation", "benchmarks.speed.stopping"),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_says_how_it_is_used(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    main = getattr(module, "main", None)
    assert isinstance(main, click.Command) == (name in COMMANDS)
    if name not in COMMANDS:
        return
    assert f"python -m {name.removesuffix('.__main__')} " in module.__doc__
    command: click.Command
    groups = getattr(main, "commands", {}).values()
    for command in (main, *groups):
        done = CliRunner().invoke(command, ["--help"])
        assert done.exit_code == 0, done.output
        assert "Usage:" in done.output
