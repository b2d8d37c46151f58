"""Each sample runs, with a real model, as it stands."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from support.talking_cloud import TalkingCloud, said

import edgesdk

pytestmark = pytest.mark.e2e
SAMPLES = Path(__file__).parents[2] / "samples"


def sample(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sample_{name}", SAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # What a class of the module is annotated with is looked up there.

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_each_is_short_and_run_by_a_test() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    for path in SAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 80, path.name
        assert f'sample("{path.stem}")' in tests, f"no test runs {path.name}"


def test_quickstart(smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample("quickstart").main(str(smollm2_gguf))
    assert capsys.readouterr().out.count("tokens/s") == 2


def test_an_answer_is_stopped(smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample("stop_a_stream").main(str(smollm2_gguf), 0.3)
    assert "[cancelled after " in capsys.readouterr().out


def test_data_is_extracted(smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = sample("extract")
    module.main(str(smollm2_gguf))
    module.Order.model_validate_json(capsys.readouterr().out)


def test_tools_are_used(smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample("use_tools").main(str(smollm2_gguf))
    call, _, answer = capsys.readouterr().out.partition("\n")
    assert call.startswith("weather({'city': ")
    assert answer.strip()


def test_a_chat_goes_on_after_a_restart(
    smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample("save_and_restore").main(str(smollm2_gguf))
    last = capsys.readouterr().out.splitlines()[-1]
    held = int(last.removeprefix("[").split()[0])
    assert held > 100
    assert "tokens came from the file" in last


def test_the_cloud_is_asked(smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TalkingCloud(lambda body: said("Dear Ann,")) as cloud:
        sample("ask_the_cloud").main(str(smollm2_gguf), cloud.url, "big")
        assert b"ann@example.com" not in cloud.sent()
        assert b"4111" not in cloud.sent()
    printed = capsys.readouterr().out
    assert "by the rule 'redact'" in printed
    assert "<EMAIL_" in printed
    assert "the rule is 'local_only', for: found CARD" in printed


def test_a_server_is_called(smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample("serve_and_call").main(str(smollm2_gguf))
    assert len(capsys.readouterr().out.strip()) > 10


async def test_a_web_app_answers(smollm2_gguf: Path) -> None:
    with edgesdk.load(smollm2_gguf) as model:
        transport = httpx.ASGITransport(sample("web_app").app_of(model))
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            answer = await client.get("/ask", params={"q": "Name one river."}, timeout=None)
            refused = await client.get("/ask", timeout=None)
        assert answer.text == model.respond("Name one river.", max_tokens=100).text
    assert (refused.status_code, "error" in refused.json()) == (400, True)


def test_a_device_is_chosen(smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample("choose_a_device").main(str(smollm2_gguf))
    printed = capsys.readouterr().out
    assert "onnxruntime" in printed
    assert "It runs on cpu" in printed
