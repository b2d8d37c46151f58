"""Each sample runs as it stands: with a real model, or with a tiny one where it trains."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.fake_engine import fake_model
from support.sure_engine import SureEngine
from support.talking_cloud import TalkingCloud, said
from support.tiny_encoders import make_encoder
from support.tiny_models import make_tiny

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


def notes(folder: Path) -> Path:
    """A folder of notes on three matters."""
    folder.mkdir()
    (folder / "passport.md").write_text(
        "The passport office is in Oslo.\n\nTo renew a passport, bring the old one and a photo."
    )
    (folder / "bread.txt").write_text("Bread: flour, water, salt and yeast. Bake it for an hour.")
    (folder / "bike.md").write_text("The bicycle's chain was replaced in May.")
    return folder


def test_notes_are_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a model that makes vectors of letters: it finds a note by its own words."""
    make_encoder("bert", tmp_path / "tiny")
    job = ExportJob(tmp_path / "tiny", tmp_path / "bundle", "tiny", scheme="fp32")
    folder, bundle = notes(tmp_path / "notes"), str(export(job, SilentProgress()).path)
    module = sample("search_notes")
    module.main(folder, "The bicycle's chain was replaced in May.", bundle)
    counted, first, *_ = capsys.readouterr().out.splitlines()
    assert counted == "[3 pieces, 3 of them new]"
    assert first == "1.00  bike.md: The bicycle's chain was replaced in May."
    (folder / "tea.md").write_text("Tea wants four minutes.")
    module.main(folder, "tea", bundle)
    assert capsys.readouterr().out.startswith("[4 pieces, 1 of them new]")


@pytest.mark.nightly
def test_notes_are_searched_by_meaning(
    minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ExportJob(minilm, tmp_path / "bundle", "minilm", scheme="int8")
    bundle = str(export(job, SilentProgress()).path)
    folder, module = notes(tmp_path / "notes"), sample("search_notes")
    for question, file in (
        ("What do I need to extend my travel document?", "passport.md"),
        ("how to make a loaf", "bread.txt"),
        ("When did I repair my two-wheeler?", "bike.md"),
    ):
        module.main(folder, question, bundle)
        assert file in capsys.readouterr().out.splitlines()[1], question


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "tiny"
    make_tiny("llama", folder)
    return folder


def test_a_router_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a model that adds numbers below ten, and is sure of nothing else."""
    monkeypatch.chdir(tmp_path)
    module = sample("train_a_router")
    sums = {f"is {a} + {b}?": (str(a + b), 0.9) for a in range(10) for b in range(10)}
    model = fake_model(SureEngine({**sums, "is ": ("7", 0.2)}))
    monkeypatch.setattr(module.edgesdk, "load", lambda name: model)
    module.main("fake", 60)
    printed = capsys.readouterr().out.splitlines()
    assert "AUROC of 1.00" in printed[0]
    assert "at most 20% of those to come" in printed[1]
    assert ["kept" in printed[2], "escalated" in printed[3]] == [True, True]
    assert list((tmp_path / "sums-profile").rglob("calibration.json"))


@pytest.mark.nightly
def test_a_router_is_trained_for_a_real_model(
    smollm2_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    sample("train_a_router").main(str(smollm2_gguf), 80)
    learned, *_, hard = capsys.readouterr().out.splitlines()
    assert float(learned.split()[-1]) > 0.8
    assert "escalated" in hard


def test_a_recipe_is_exported_by(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample("export_with_a_recipe").main(tiny_checkpoint, tmp_path / "mine")
    printed = capsys.readouterr().out
    assert printed.startswith("mine: int4")
    assert "top-1 agreement" in printed


def test_a_student_is_distilled(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{i} times {i} is {i * i}." for i in range(150)))
    sample("distill_a_student").main(tiny_checkpoint, tmp_path / "small", [text], 2, steps=4)
    left, cut, trained, *_ = capsys.readouterr().out.splitlines()
    assert left.count(",") == 1
    before, after = (float(line.split()[3].rstrip(",")) for line in (cut, trained))
    assert after < before
    assert (tmp_path / "small-bundle" / "edgesdk.json").is_file()


def test_an_adapter_is_made(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ExportJob(tiny_checkpoint, tmp_path / "bundle", "tiny", quality_tokens=0)
    export(job, SilentProgress())
    sample("make_an_adapter").main(tiny_checkpoint, tmp_path / "bundle", tmp_path / "out", steps=4)
    printed = capsys.readouterr().out
    without, adapted = printed.removeprefix("without: ").split("ahoy: ")
    assert without.strip() != adapted.strip()
