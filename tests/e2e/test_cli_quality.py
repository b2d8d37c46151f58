"""`edgesdk quality`: its report, its plot, its JSON, its refusals."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support.command_line import edgesdk_here
from support.tiny_models import make_tiny

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, a text, and a store with two bundles of it."""
    folder = tmp_path_factory.mktemp("quality")
    make_tiny("llama", folder / "tiny")
    (folder / "fox.txt").write_text("the quick brown fox jumps over the lazy dog " * 400)
    for bits in ("4", "8"):
        run("export", "tiny", "--bits", bits, "--quality-tokens", "0", place=folder)
    return folder


def run(*arguments: str, place: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("MPLCONFIGDIR", str(place / "matplotlib"))
        patch.delenv("DISPLAY", raising=False)
        return edgesdk_here(*arguments, home=place / "home", expect=expect)


def test_several_bundles_are_reported_and_drawn(place: Path) -> None:
    pytest.importorskip("matplotlib")
    options = ("--against", "tiny", "--text", "fox.txt", "--tokens", "500")
    done = run("quality", "tiny-int4", "tiny-int8", *options, "--plot", "q.png", place=place)
    assert done.stdout.count("top-1 agreement") == 2
    assert "tiny-int8: onnx, int8" in done.stdout
    assert "±" in done.stdout
    assert "tokens of fox.txt" in done.stdout
    assert "Measuring quality" in done.stderr
    assert (place / "q.png").read_bytes().startswith(b"\x89PNG")


def test_json_has_every_figure(place: Path) -> None:
    folder = str(place / "home" / "bundles" / "tiny-int4")
    done = run("quality", folder, "--against", "tiny", "--tokens", "300", "--json", place=place)
    (found,) = json.loads(done.stdout)
    assert (found["name"], found["format"], found["weights"]) == ("tiny-int4", "onnx", "int4")
    assert 0 < found["quality"]["kl_median"] < found["quality"]["kl_p99"]
    assert found["quality"]["perplexity_error"] > 0
    assert found["quality"]["text_name"] == "the Python language reference"
    assert len(found["kl_by_layer"]) == 3


def test_wrong_use_is_named(place: Path) -> None:
    against = ("--against", "tiny")
    assert "--against" in run("quality", "tiny-int4", place=place, expect=2).stderr
    error = run("quality", "tiny-int4", *against, "--plot", "q.svg", place=place, expect=2).stderr
    assert "draws a .png file, not q.svg" in error
    error = run("quality", str(place / "home"), *against, place=place, expect=1).stderr
    assert "edgesdk.json" in error
    error = run("quality", "tiny-int5", *against, place=place, expect=1).stderr
    assert "tiny-int5" in error
    assert "Traceback" not in error
