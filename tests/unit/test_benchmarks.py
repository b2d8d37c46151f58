"""Every benchmark can be imported and says how it is used."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import benchmarks

MODULES = sorted(info.name for info in pkgutil.walk_packages(benchmarks.__path__, "benchmarks."))


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_says_how_it_is_used(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    if '__name__ == "__main__"' not in Path(str(module.__file__)).read_text(encoding="utf-8"):
        return
    assert f"python -m {name.removesuffix('.__main__')}" in module.__doc__
    main = getattr(module, "main", None)
    if not isinstance(main, click.Command):
        return  # a worker, which the benchmarks run
    groups = getattr(main, "commands", {}).values()
    for command in (main, *groups):
        done = CliRunner().invoke(command, ["--help"])
        assert done.exit_code == 0, done.output
        assert "Usage:" in done.output
