"""Bundles for Qualcomm's NPU in its simulator, from `export` to a chat, and what is compiled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.exported import made_once
from support.qnn_simulator import require_simulator
from support.small_disk import grow, small_disk
from support.tiny_models import make_tiny

import edgesdk
from edgesdk.bundle.opening import open_bundle
from edgesdk.cli.command_group import group
from edgesdk.cli.doctor import run_checks
from edgesdk.engines.npu import onnx_compiler
from edgesdk.engines.npu.compile_cache import CompileCache
from edgesdk.engines.registry import open_engine
from edgesdk.errors import EngineError, InvalidOption
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.reply import HybridReply
from edgesdk.server.model_pool import StoreModels
from edgesdk.store import Store

pytestmark = pytest.mark.integration

TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(40)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    require_simulator()
    monkeypatch.setenv("EDGESDK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of one tiny model, by the names of their weights."""

    def make(folder: Path) -> None:
        make_tiny("llama", folder / "checkpoint", num_hidden_layers=2)
        for scheme in ("fp16", "int4", "int8"):
            job = ExportJob(
                *(folder / "checkpoint", folder / scheme, "tiny"),
                target="qualcomm",
                scheme=scheme,
                quality_tokens=0,
                prefill=32,
                window=64,
            )
            export(job, SilentProgress())

    return made_once(tmp_path_factory, "qualcomm-bundles", make)


@pytest.fixture
def bundle(bundles: Path, tmp_path: Path) -> Path:
    """A copy to change, in 4 bits."""
    return Path(shutil.copytree(bundles / "int4", tmp_path / "bundle"))


def compiled_in(folder: Path) -> list[Path]:
    return sorted(place for place, _ in CompileCache(folder / "compiled").entries())


@pytest.mark.parametrize("weights", ["fp16", "int4", "int8"])
def test_a_chat_of_16_tokens(weights, bundles: Path) -> None:
    with edgesdk.load(bundles / weights, device="qualcomm") as model:
        reply = model.chat().respond("Hello there.", max_tokens=16)
        # One graph for prefill and one for decode, each of one node.
        assert model.device.nodes == (("QNNExecutionProvider", 2),)
        assert (model.device.partitions, model.device.in_software) == (2, True)
    assert reply.receipt.device == "qualcomm"
    assert "in software" in reply.receipt.line()
    assert len(reply.tokens) == 16 or reply.finish_reason == "stop"
    engines = [open_engine(open_bundle(bundles / weights), each) for each in ("qualcomm", "cpu")]
    found, expected = (
        np.array([engine.new_state().extend(TOKENS[: length + 1])[0] for length in range(39)])
        for engine in engines
    )
    best = found.argmax(-1)
    behind = expected.max(-1) - np.take_along_axis(expected, best[:, None], -1)[:, 0]
    # Of logits between -8 and 8.
    assert behind.max() < 0.1


def test_a_model_is_compiled_once(bundle: Path, home: Path, monkeypatch) -> None:
    with edgesdk.load(bundle, device="qualcomm"):
        pass
    (place,) = compiled_in(home)
    entry = json.loads((place / "entry.json").read_text())
    assert entry["key"]["platform"] == "60"
    assert entry["compatibility"].split(":")[4:6] == ["73", "60"]
    assert any(each.name == "compiled models" for each in run_checks(Store()))

    def never(*arguments: object) -> None:
        raise AssertionError("it is compiled already")

    monkeypatch.setattr(onnx_compiler.ort, "ModelCompiler", never)
    with edgesdk.load(bundle, device="qualcomm") as model:
        assert model.respond("Hello", max_tokens=2).receipt.device == "qualcomm"


@pytest.mark.parametrize("damage", ["context", "graph", "version"])
def test_what_cannot_be_used_is_compiled_again(damage, bundle: Path, home: Path) -> None:
    with edgesdk.load(bundle, device="qualcomm"):
        pass
    (place,) = compiled_in(home)
    if damage == "version":
        # As another version of the provider left it, in the place of this one's.
        path = place / "entry.json"
        text = path.read_text()
        path.write_text(text.replace("onnxruntime-qnn ", "onnxruntime-qnn 0."))
    else:
        path = next(place.glob("decode*.bin" if damage == "context" else "decode.onnx"))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    with edgesdk.load(bundle, device="qualcomm") as model:
        assert model.respond("Hello", max_tokens=2).receipt.device == "qualcomm"
    assert CompileCache().entries()[0][1].key.versions[1].startswith("onnxruntime-qnn 2")


def test_a_context_whole_but_of_another_driver_is_compiled_again(bundle: Path, home: Path) -> None:
    cache = CompileCache()
    with edgesdk.load(bundle, device="qualcomm"):
        pass
    ((place, entry),) = cache.entries()

    class Foreign:
        key = entry.key

        def write(self, folder: Path, progress: object) -> str:
            for file in entry.files:
                shutil.copy(place / file.name, folder / file.name)
            context = next(folder.glob("decode*.bin"))
            context.write_bytes(b"\0" * context.stat().st_size)
            return ""

    kept = shutil.copytree(place, place.with_name("kept"))
    cache.remove(entry.key)
    place, before = kept, kept
    cache.store(Foreign())
    with edgesdk.load(bundle, device="qualcomm") as model:
        assert model.respond("Hello", max_tokens=2).receipt.device == "qualcomm"
    assert cache.entries()[0][1].compatibility
    assert before.exists()


def run(*arguments: str) -> str:
    done = CliRunner().invoke(group, ["compile", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_compiles_for_several_processors(bundle: Path, home: Path) -> None:
    made = json.loads(
        run(
            str(bundle),
            "--device",
            "qualcomm",
            "--soc",
            "57,60",
            "--output",
            f"{bundle}/compiled",
            "--json",
        )
    )
    assert [each["key"]["platform"] for each in made] == ["57", "60"]
    for each, (soc, arch) in zip(made, [("57", "75"), ("60", "73")], strict=True):
        assert each["compatibility"].split(":")[4:6] == [arch, soc]
        assert f"soc_model={soc}" in each["key"]["options"]
    # What lies in the bundle goes with it: this machine compiles nothing.
    for options in ({}, {"soc_model": 57}):
        with edgesdk.load(bundle, device="qualcomm", device_options=options) as model:
            assert model.device.partitions == 2
    assert compiled_in(home) == []
    run(str(bundle), "--device", "qualcomm", "--platform", "69")
    assert "69" in run("--list")
    assert json.loads(run("--clear", "--json"))["freed"] > 0
    assert "Nothing is compiled" in run("--list")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--device", "qualcomm", "--soc", "61"), "knows no processor '61'"),
        (("--device", "cpu", "--soc", "60"), "does not compile models for the device 'cpu'"),
    ],
)
def test_what_cannot_be_compiled_is_refused(arguments, what, bundle: Path) -> None:
    with pytest.raises(InvalidOption, match=what):
        CliRunner().invoke(group, ["compile", str(bundle), *arguments], catch_exceptions=False)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_a_disk_that_fills_up(share, bundle: Path, tmp_path: Path, monkeypatch) -> None:
    with edgesdk.load(bundle, device="qualcomm"):
        pass
    ((_, entry),) = CompileCache().entries()
    with small_disk(tmp_path / "small", int(entry.size * share)) as disk:
        monkeypatch.setenv("EDGESDK_HOME", str(disk))
        with pytest.raises(EngineError, match=r"disk that holds .*small.* is full"):
            edgesdk.load(bundle, device="qualcomm")
        left = [path for path in disk.rglob("*") if path.is_file() and path.suffix != ".lock"]
        assert left == []
        grow(disk, 50_000_000)
        with edgesdk.load(bundle, device="qualcomm") as model:
            assert model.device.device == "qualcomm"


def test_the_cpu_answers_until_the_device_is_ready(bundle: Path, home: Path) -> None:
    with edgesdk.load(bundle, device="qualcomm", warm_start=True) as model:
        assert model.warm_start is not None
        chat = model.chat()
        first = chat.respond("Hello there.", max_tokens=8)
        assert (first.receipt.device, first.receipt.requested_device) == ("cpu", "qualcomm")
        assert "it is being compiled" in model.device.line()
        assert model.warm_start.wait(120)
        assert (model.warm_start.state, model.warm_start.error) == ("ready", None)
        assert model.warm_start.progress == (2, 2)
        second = chat.respond("And then?", max_tokens=8)
        assert second.receipt.device == "qualcomm"
        assert [each["role"] for each in chat.messages] == ["user", "assistant"] * 2
        assert chat.messages[1]["content"] == first.text
    # A chat that was on the device from its start answers the same.
    with edgesdk.load(bundle, device="qualcomm", warm_start=True) as model:
        assert model.warm_start is None
        history = [*chat.messages[:2], {"role": "user", "content": "And then?"}]
        assert model.respond(history, max_tokens=8).tokens == second.tokens


def test_servers_and_hybrid_clients_move_to_the_device(bundle: Path, home: Path) -> None:
    cold = StoreModels([str(bundle)], device="qualcomm", warm_start=True)
    (name,) = [model.name for model in cold.list_models()]
    plain = StoreModels([str(bundle)], device="qualcomm")
    assert cold.memory(name) > 2 * plain.memory(name), "the CPU has it, too"
    with cold.load(name) as model, HybridClient(model) as client, client.chat() as chat:

        def device(reply: HybridReply) -> str:
            assert reply.local is not None
            return reply.local.receipt.device

        assert device(chat.respond("Hello there.", max_tokens=8)) == "cpu"
        assert model.warm_start is not None
        assert model.warm_start.wait(120)
        assert device(client.respond("Hello there.", max_tokens=8)) == "qualcomm"
        assert device(chat.respond("And then?", max_tokens=8)) == "qualcomm"


def test_closing_the_model_ends_the_compiling(bundle: Path, home: Path) -> None:
    with edgesdk.load(bundle, device="qualcomm", warm_start=True) as model:
        warming = model.warm_start
        assert warming is not None
    assert warming.state == "closed"
    assert compiled_in(home) == []
    assert list(home.glob("compiled/.*.new")) == []
