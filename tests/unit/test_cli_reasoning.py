"""What the command line shows of reasoning: nothing where a program reads, else dimmed."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console
from support.reasoning_models import reasoning_model

from edgesdk.cli import chat as chat_module
from edgesdk.cli import main
from edgesdk.cli import run as run_module
from edgesdk.cli.terminal import show_answer
from edgesdk.model import Model
from edgesdk.reply import ReasoningDelta

THOUGHT = "<think>\nTwo and two.\n</think>\n\nFour."
Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    @contextlib.contextmanager
    def loaded(*what: object, **settings: object) -> Iterator[Model]:
        yield reasoning_model(THOUGHT)[0]

    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(run_module, "loaded_model", loaded)
        monkeypatch.setattr(chat_module, "loaded_model", loaded)
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        out, err = capsys.readouterr()
        return out, err

    return run


def test_a_pipe_gets_the_answer_alone(run: Run) -> None:
    out, err = run("run", "fake", "2+2?")
    assert out == "Four.\n"
    assert "Two and two" not in err
    assert "of reasoning" in err


def test_json_has_both(run: Run) -> None:
    out, _ = run("run", "fake", "2+2?", "--json")
    reply = json.loads(out)
    assert (reply["text"], reply["reasoning"]) == ("Four.", "Two and two.")
    assert reply["receipt"]["reasoning_tokens"] == len("<think>\nTwo and two.\n</think>")


def test_reasoning_is_bounded_and_a_cut_in_it_is_explained(run: Run) -> None:
    out, err = run("run", "fake", "2+2?", "--max-tokens", "12")
    assert out == "\n"
    assert "ended in its reasoning" in err
    assert "--max-reasoning-tokens" in err


def test_a_chat_in_a_pipe_shows_answers_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["2+2?"])

    def typed(prompt: str = "") -> str:
        with contextlib.suppress(StopIteration):
            return next(lines)
        raise EOFError

    monkeypatch.setattr(builtins, "input", typed)
    out, _ = run("chat", "fake")
    assert "Four." in out
    assert "Two and two" not in out


def test_a_terminal_shows_reasoning_dimmed_before_the_answer() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=60, height=20, legacy_windows=False)
    show_answer(console, [ReasoningDelta("Two "), ReasoningDelta("and \x1btwo."), "Four", "."])
    dim, end = "\x1b[2m", "\x1b[0m"
    # What streamed before was a preview.
    assert shown.getvalue().rpartition(dim)[2].startswith(f"Two and \ufffdtwo.{end}\n")
    assert shown.getvalue().rstrip().endswith("Four.")
