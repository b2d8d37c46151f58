"""How `edgesdk run` and `edgesdk chat` end answers that have no end of their own."""

from __future__ import annotations

import builtins
import contextlib
import json
import random
from collections.abc import Callable, Iterator

import pytest
from support.fake_engine import FakeEngine, fake_model

from edgesdk.cli import chat as chat_module
from edgesdk.cli import main
from edgesdk.cli import run as run_module
from edgesdk.model import Model

Run = Callable[..., tuple[str, str]]

ENDLESS = bytes(random.Random(1).choices(b"abcdefghijklmnopqrstuvwxyz ", k=3000))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(answer: bytes, *arguments: str, command: str = "run") -> tuple[str, str]:
        @contextlib.contextmanager
        def loaded(*what: object, **settings: object) -> Iterator[Model]:
            yield fake_model(FakeEngine(answer))

        monkeypatch.setattr(run_module, "loaded_model", loaded)
        monkeypatch.setattr(chat_module, "loaded_model", loaded)
        with pytest.raises(SystemExit) as caught:
            main([command, "fake", *arguments])
        assert caught.value.code == 0
        out, err = capsys.readouterr()
        return out, err

    return run


def test_an_answer_that_goes_in_a_cycle_is_one_turn_and_says_so(run: Run) -> None:
    out, err = run(b"It is a city. " * 300, "What is Paris?")

    assert out.rstrip() == "It is a city."
    assert "ended by repetition" in err
    assert "--no-stop-on-repetition" in err


def test_a_cycle_may_go_on_to_the_limit(run: Run) -> None:
    out, err = run(b"It is a city. " * 300, "What is Paris?", "--no-stop-on-repetition")

    assert len(out.rstrip("\n")) == 1024
    assert "cut after 1,024 tokens" in err
    assert "cycle" not in err


def test_a_long_answer_is_cut_and_says_how_to_get_more(run: Run) -> None:
    out, err = run(ENDLESS, "Write.")

    assert len(out.rstrip("\n")) == 1024
    assert "ended by length" in err
    assert "--max-tokens allows more (0: as many as the context holds)" in err


def test_the_limit_can_be_another_or_none(run: Run) -> None:
    assert run(ENDLESS, "Write.", "--max-tokens", "2000")[0] == ENDLESS[:2000].decode() + "\n"
    assert run(ENDLESS, "Write.", "--max-tokens", "0")[0] == ENDLESS.decode() + "\n"


def test_a_full_context_is_told_from_the_limit(run: Run) -> None:
    out, err = run(ENDLESS * 2, "Write.", "--max-tokens", "0")

    assert len(out) > 4000
    assert "the context is full" in err
    assert "--max-tokens" not in err


def test_a_whole_answer_is_followed_by_its_receipt_alone(run: Run) -> None:
    out, err = run(b"Paris.", "What?")

    assert out == "Paris.\n"
    assert err.count("\n") == 1


@pytest.mark.parametrize("silent", ["--json", "--no-receipt"])
def test_programs_get_no_remarks(run: Run, silent: str) -> None:
    out, err = run(b"It is a city. " * 300, "What is Paris?", silent)

    assert err == ""
    if silent == "--json":
        receipt = json.loads(out)["receipt"]
        assert (receipt["finish_reason"], receipt["output_tokens"]) == ("repetition", 14)


def test_a_chat_says_it_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["What is Paris?"])

    def typed(prompt: str = "") -> str:
        for line in lines:
            return line
        raise EOFError

    monkeypatch.setattr(builtins, "input", typed)
    out, _ = run(b"It is a city. " * 300, command="chat")

    assert out.count("It is a city.") == 1
    assert "went in a cycle" in out


def test_a_model_that_cannot_chat_goes_on_with_the_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = FakeEngine(b"upon a time.")

    @contextlib.contextmanager
    def loaded(*what: object, **settings: object) -> Iterator[Model]:
        yield fake_model(engine, template=None)

    monkeypatch.setattr(run_module, "loaded_model", loaded)
    with pytest.raises(SystemExit) as caught:
        main(["run", "fake", "Once \x02", "--no-receipt"])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (0, "upon a time.\n")
    assert bytes(engine.states[0].tokens).startswith(b"Once \x02upon")
    assert "cannot chat (it has no chat template)" in " ".join(err.split())
    # A system message has no place there.
    with pytest.raises(SystemExit) as caught:
        main(["run", "fake", "Once", "--system", "Be brief."])
    assert caught.value.code == 2
    assert "Put what --system says into the prompt" in capsys.readouterr().err
