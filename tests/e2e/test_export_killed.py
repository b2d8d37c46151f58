"""An export that is killed at any of its steps leaves no bundle, and none that looks like one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.other_process import run_python
from support.tiny_models import make_tiny

from edgesdk.bundle.opening import is_bundle, open_bundle, verify_bundle

pytestmark = pytest.mark.e2e

# Exports over and over, each time in a child that kills itself one step later, until one comes
# through. A step is a call of the progress, or of what makes the last moments of a bundle.
KILLING = """
import json, os, signal, sys
from pathlib import Path
from edgesdk_export.pipeline import ExportJob, export
from edgesdk.bundle import writing

class Killing:
    def __init__(self, steps):
        self.left = steps
    def step(self):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
    def stage(self, title, steps):
        self.step()
    def advance(self, done):
        self.step()

def before(killing, original):
    def run(*arguments, **settings):
        killing.step()
        return original(*arguments, **settings)
    return run

source, target, form, replace = sys.argv[1:]
target = Path(target)
job = ExportJob(
    checkpoint=Path(source), destination=target, name="tiny", format=form, replace=replace == "1",
    quality_tokens=0,
)
kills = []
while True:
    child = os.fork()
    if child == 0:
        killing = Killing(len(kills))
        Path.replace = before(killing, Path.replace)
        writing.flush_file = before(killing, writing.flush_file)
        export(job, killing)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        break
    names = sorted(path.name for path in target.parent.iterdir())
    kills.append([name for name in names if not name.startswith(".")])
print(json.dumps({"kills": kills, "status": status, "left": os.listdir(target.parent)}))
"""


def killed_at_each_step(source: Path, target: Path, form: str, *, replace: bool) -> dict:
    return run_python(KILLING, str(source), str(target), form, str(int(replace)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
@pytest.mark.parametrize("form", ["onnx", pytest.param("gguf", marks=pytest.mark.nightly)])
def test_a_kill_leaves_no_bundle_and_the_last_export_clears_up(form, tmp_path):
    if form == "gguf":
        pytest.importorskip("llama_cpp")
    make_tiny("llama", tmp_path / "hf", num_hidden_layers=1)
    target = tmp_path / "out" / "b"
    target.parent.mkdir()
    found = killed_at_each_step(tmp_path / "hf", target, form, replace=False)
    # Layer, hashing, each file, the manifest, and the moment before it gets its name.
    assert len(found["kills"]) > 8
    assert not any(found["kills"])
    assert (found["status"], found["left"]) == (0, ["b"])
    verify_bundle(open_bundle(target))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_a_bundle_that_is_replaced_is_never_lost(tmp_path):
    make_tiny("llama", tmp_path / "hf", num_hidden_layers=1)
    target = tmp_path / "out" / "b"
    target.parent.mkdir()
    killed_at_each_step(tmp_path / "hf", target, "onnx", replace=False)
    (target / "mark").touch()
    found = killed_at_each_step(tmp_path / "hf", target, "onnx", replace=True)
    # Between two renames it has no name. The next export gives it back before it begins, which is
    # a step more, so that it is killed at the same place.
    assert found["kills"] == [["b"]] * (len(found["kills"]) - 2) + [[], []]
    assert found["left"] == ["b"]
    assert is_bundle(target)
    assert not (target / "mark").exists()
