"""`edgesdk fit`, and what `edgesdk chat` saves and restores."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fake_engine import FakeEngine, fake_model
from support.untrained_gguf import write_untrained_gguf

from edgesdk.cli import main
from edgesdk.model import Model

Run = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str, lines: tuple[str, ...] = ()) -> tuple[int | str | None, str, str]:
        waiting: Iterator[str] = iter(lines)

        def typed(prompt: str = "") -> str:
            line = next(waiting, None)
            if line is None:
                raise EOFError
            return line

        monkeypatch.setattr(builtins, "input", typed)
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        return caught.value.code, *capsys.readouterr()

    return run


def test_fit_as_json(run: Run, tmp_path: Path) -> None:
    path = write_untrained_gguf(tmp_path / "a.gguf")
    status, out, _ = run("fit", str(path), "--context", "100", "--json")
    plan = json.loads(out)
    assert status == 0
    assert plan["fits"] is True
    assert (plan["context"], plan["model_context"], plan["longest_context"]) == (100, 512, 512)
    parts = plan["need"]
    assert parts.pop("total") == sum(parts.values())


def test_fit_for_people(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_untrained_gguf(tmp_path / "a.gguf")
    status, out, _ = run("fit", str(path))
    assert status == 0
    assert "it fits" in out
    assert "512 of 512 tokens" in out
    monkeypatch.setattr("edgesdk.system.plan.available_bytes", lambda: 1000)
    status, out, _ = run("fit", str(path))
    assert status == 1
    assert "does not fit" in out
    assert "nothing fits" in out


def test_fit_of_a_context_that_the_model_has_not(run: Run, tmp_path: Path) -> None:
    path = write_untrained_gguf(tmp_path / "a.gguf")
    status, _, err = run("fit", str(path), "--context", "513")
    assert status == 2
    assert "between 1 and 512" in err


def test_a_chat_goes_on_tomorrow(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgesdk.cli.model_options.load", lambda *_, **__: fake_model())
    path = tmp_path / "a.chat"
    status, _, _ = run("chat", "fake", "--system", "Be kind.", lines=("Hello", f"/save {path}"))
    assert status == 0
    status, out, _ = run("chat", "fake", "--restore", str(path), lines=("Go on",))
    assert status == 0
    assert "(42 cached)" in out
    status, _, err = run("chat", "fake", "--restore", str(path), "--system", "Be rude.")
    assert status == 2
    assert "own --system" in err
    path.write_bytes(b"junk")
    status, _, err = run("chat", "fake", "--restore", str(path))
    assert status == 1
    assert "not a saved sequence" in err


def test_a_chat_makes_room_if_told_to(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(context_length=100)
    monkeypatch.setattr("edgesdk.cli.model_options.load", lambda *_, **__: fake_model(engine))
    lines = ("x" * 40, "y" * 40)
    _, out, _ = run("chat", "fake", lines=lines)
    assert "error: The prompt has" in out
    _, out, _ = run("chat", "fake", "--overflow", "drop_oldest_turns", lines=lines)
    assert "1 turn dropped" in " ".join(out.split())


@pytest.mark.parametrize("given", [(), ("--warm-start",)])
def test_a_chat_and_a_server_can_start_warm(run: Run, monkeypatch, given: tuple[str, ...]) -> None:
    seen: list[bool] = []

    def opened(*_: object, warm_start: bool, **__: object) -> Model:
        seen.append(warm_start)
        return fake_model()

    monkeypatch.setattr("edgesdk.cli.model_options.load", opened)
    monkeypatch.setattr("edgesdk.server.model_pool.StoreModels", opened)
    monkeypatch.setattr("edgesdk.server.serving.serve", lambda *_, **__: None)
    assert run("chat", "tiny", *given)[0] == 0
    assert run("serve", *given)[0] == 0
    assert seen == [bool(given)] * 2
