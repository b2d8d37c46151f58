"""A killed export goes on where it was, and writes what it would have written undisturbed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.other_process import run_python
from support.tiny_models import make_tiny

from edgesdk.bundle.opening import open_bundle, verify_bundle

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children"),
]

# Everything that calibration carries from layer to layer is in these.
CALIBRATED = """
[onnx]
bits = 6.5
method = "gptq"
awq = true
sweeps = 1
[gguf]
type = "q4_k_m"
method = "weighted"
[calibration]
tokens = 512
"""

# The same of graphs of fixed shapes: codes of blocks that calibration looks for, and grids of
# activations that it measures.
CALIBRATED_STATIC = """
[onnx]
bits = 4
method = "gptq"
awq = true
[calibration]
tokens = 512
"""
QUANTIZED_ACTIVATIONS = """
[onnx]
bits = 8
[static]
activations = "uint16"
[calibration]
tokens = 512
"""

# Exports undisturbed, then with kills at the moments asked for, then with kills at random ones.
RESUMING = """
import json, os, random, signal, sys, time
from pathlib import Path
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.recipes import load_recipe

source, folder, form, target, recipe, moments = sys.argv[1:]
folder = Path(folder)

class Watching:
    def __init__(self, kill_at):
        self.kill_at, self.seen = kill_at, {}
    def stage(self, title, steps):
        self.title, self.seen[title] = title, []
    def advance(self, done):
        self.seen[self.title].append(done)
        if [self.title, done] == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

def start(name, kill_at=None):
    child = os.fork()
    if child:
        return child
    watching = Watching(kill_at)
    job = ExportJob(
        checkpoint=Path(source), destination=folder / name, name="tiny", format=form,
        target=target, recipe=load_recipe(recipe), quality_tokens=0,
    )
    export(job, watching)
    (folder / f"{name}.json").write_text(json.dumps(watching.seen))
    os._exit(0)

def killed(child):
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

began = time.monotonic()
assert not killed(start("clean"))
duration = time.monotonic() - began

seen = []
for moment in json.loads(moments):
    assert killed(start("asked", moment))
assert not killed(start("asked"))

draw = random.Random(0)
for _ in range(6):
    child = start("random")
    time.sleep(draw.uniform(0, duration / 2))
    os.kill(child, signal.SIGKILL)
    killed(child)
    if (folder / "random.json").exists():
        break
else:
    assert not killed(start("random"))
hidden = [path.name for path in folder.iterdir() if path.name.startswith(".")]
print(json.dumps(hidden))
"""


def files_of(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


def resumed(
    tmp_path: Path, form: str, recipe: str, moments: list[tuple[str, int]], target: str = "cpu"
) -> dict:
    """The steps that the run after the last asked kill saw, by stage."""
    make_tiny("llama", tmp_path / "hf", num_hidden_layers=4)
    out = tmp_path / "out"
    out.mkdir()
    arguments = [str(tmp_path / "hf"), str(out), form, target, recipe, json.dumps(moments)]
    assert run_python(RESUMING, *arguments) == []
    for name in ("asked", "random"):
        assert files_of(out / name) == files_of(out / "clean")
        verify_bundle(open_bundle(out / name))
    return json.loads((out / "asked.json").read_text())


@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_a_resumed_export_writes_the_same_bytes(form, tmp_path):
    if form == "gguf":
        pytest.importorskip("llama_cpp")
    title = "Writing int8 layers" if form == "onnx" else "Writing q8_0 layers"
    seen = resumed(tmp_path, form, "fast", [(title, 2), (title, 3)])
    assert min(seen[title]) >= 3


def test_a_resumed_calibration_writes_the_same_onnx(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(CALIBRATED)
    kills = [
        ("Searching channel scales", 1),
        ("Searching channel scales", 3),
        ("Measuring sensitivity", 2),
        ("Writing int4 layers", 1),
        ("Writing int4 layers", 3),
    ]
    seen = resumed(tmp_path, "onnx", str(recipe), kills)
    assert seen["Measuring sensitivity"] == [4]
    assert seen["Searching channel scales"] == [4]
    assert seen["Writing int4 layers"] == [3, 4]


@pytest.mark.nightly
def test_a_resumed_calibration_writes_the_same_gguf(tmp_path):
    pytest.importorskip("llama_cpp")
    recipe = tmp_path / "mine.toml"
    recipe.write_text(CALIBRATED)
    title = "Writing q4_k_m layers"
    kills = [("Measuring importance", 1), ("Measuring importance", 3), (title, 2)]
    seen = resumed(tmp_path, "gguf", str(recipe), kills)
    assert seen["Measuring importance"] == [4]
    assert min(seen[title]) >= 2


@pytest.mark.parametrize(
    ("recipe", "stages", "weights"),
    [
        (CALIBRATED_STATIC, ["Searching channel scales", "Writing int4 layers"], "int4-symmetric"),
        (QUANTIZED_ACTIVATIONS, ["Measuring activations", "Writing a16w8 layers"], "a16w8"),
    ],
    ids=["calibrated", "a16w8"],
)
def test_a_resumed_export_for_an_npu_writes_the_same_graphs(recipe, stages, weights, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(recipe)
    kills = [(stage, done) for stage in stages for done in (1, 3)]
    seen = resumed(tmp_path, "onnx", str(path), kills, target="npu")
    manifest = open_bundle(tmp_path / "out" / "asked").manifest
    assert manifest.static is not None
    assert manifest.quantization.weights == weights
    assert seen[stages[0]] == [4]
    assert seen[stages[1]] == [3, 4]
