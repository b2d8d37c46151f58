"""What the command line says to wrong use and to jobs that fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgesdk.cli import main


@dataclass(frozen=True)
class Result:
    """What a run printed, and its exit code."""

    status: int | str | None
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def edgesdk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the command line in this process, with a store of its own."""
    monkeypatch.setenv("EDGESDK_HOME", str(tmp_path))

    def run(*arguments: str) -> Result:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        return Result(caught.value.code, *capsys.readouterr())

    return run


def error_line(result: Result) -> str:
    """The one line of error that there is, and nothing else."""
    (line,) = result.err.splitlines()
    assert line.startswith("edgesdk: error: ")
    assert result.out == ""
    return line


@pytest.mark.parametrize("name", ["pull", "list", "show", "verify", "remove", "embed", "doctor"])
def test_the_help_of_each_subcommand_shows_examples_unwrapped(edgesdk: Run, name: str) -> None:
    result = edgesdk(name, "--help")
    assert result.status == 0
    assert f"    edgesdk {name}" in result.out


@pytest.mark.parametrize(("alias", "name"), [("ls", "list"), ("rm", "remove")])
def test_what_users_of_ollama_type_by_habit(edgesdk: Run, alias: str, name: str) -> None:
    assert edgesdk(alias, "--help") == edgesdk(name, "--help")


def test_the_names_that_options_have_in_llama_cpp() -> None:
    from edgesdk.cli.model_options import option_kwargs
    from edgesdk.cli.run import command

    given = [
        "m",
        "p",
        "-n",
        "-1",
        "-c",
        "512",
        "-t",
        "2",
        "-s",
        "3",
        "--temp",
        "0.5",
        "--repeat-penalty",
        "1.1",
        "-sys",
        "Brief",
    ]
    read = command.make_context("run", given).params
    assert (read["context"], read["threads"], read["system"]) == (512, 2, "Brief")
    assert option_kwargs({name: read[name] for name in ("max_tokens", "seed", "temperature")}) == {
        "max_tokens": None,
        "seed": 3,
        "temperature": 0.5,
    }


def test_ps_says_that_there_is_no_server(edgesdk: Run) -> None:
    result = edgesdk("ps", "--url", "http://127.0.0.1:9")
    assert "does not answer as a server of edgesdk" in error_line(result)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["pul"], "Did you mean pull?"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["pull"], "Missing argument 'REFERENCE'"),
        (["list", "--frob"], "--frob"),
        (["show", "x", "--kind", "other"], "--kind"),
        (["pull", "pypi:no-version"], "exact version"),
        (["verify", "Not A Name"], "cannot be the name"),
        (["remove"], "Missing argument"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    edgesdk: Run, arguments: list[str], reason: str
) -> None:
    result = edgesdk(*arguments)
    assert result.status == 2
    assert reason in error_line(result)


def test_without_a_subcommand_the_help_comes_as_an_error(edgesdk: Run) -> None:
    result = edgesdk()
    assert result.status == 2
    assert result.out == ""
    assert "edgesdk pull smollm2-135m-instruct" in result.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["pull", "smollm2"], "Did you mean smollm2-135m-instruct?"),
        (["show", "absent"], "no model 'absent'"),
        (["verify", "absent"], "no model 'absent'"),
        (["remove", "absent"], "no model 'absent'"),
    ],
)
def test_a_failed_job_is_one_line_and_exit_code_1(
    edgesdk: Run, arguments: list[str], reason: str
) -> None:
    result = edgesdk(*arguments)
    assert result.status == 1
    assert reason in error_line(result)
