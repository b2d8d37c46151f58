"""The desktop chat as PyInstaller builds it, in an environment that has nothing.

EDGESDK_DESKTOP_BUILD names the folder of a build that is there already; building takes minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from edgesdk_desktop import protocol
from edgesdk_desktop.protocol import from_line, to_line

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.skipif(sys.platform != "linux", reason="memory maps are read from /proc"),
]
_ROOT = Path(__file__).parents[2]
_RECIPE = _ROOT / "samples" / "desktop_chat" / "packaging" / "edgesdk_desktop.spec"
_PATIENCE = 120.0
_NAME = "edgesdk-desktop"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if there := os.environ.get("EDGESDK_DESKTOP_BUILD"):
        return Path(there)
    folder = tmp_path_factory.mktemp("build")
    paths = ("--distpath", str(folder), "--workpath", str(folder / "work"))
    command = [sys.executable, "-m", "PyInstaller", "-y", *paths, str(_RECIPE)]
    subprocess.run(command, cwd=folder, check=True)
    return folder / _NAME


@pytest.fixture
def nothing(tmp_path: Path) -> dict[str, str]:
    """An environment without Python, or a PATH at all."""
    return {"HOME": str(tmp_path), "QT_QPA_PLATFORM": "offscreen"}


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_build_has_no_training_and_no_other_engine(build: Path) -> None:
    names = {path.name for path in (build / "_internal").iterdir()}
    assert {"PySide6", "llama_cpp", "onnxruntime"} <= names
    assert not names & {"torch", "transformers", "mlx", "openvino", "coremltools", "scipy"}


def test_the_engine_of_a_build_answers(
    build: Path, nothing: dict[str, str], smollm2_gguf: Path
) -> None:
    requests = (
        protocol.Load(str(smollm2_gguf)),
        protocol.Ask("a", [], "Name one fruit.", "local_only", max_tokens=4),
    )
    engine = subprocess.Popen(
        [build / _NAME, "--engine"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=nothing,
    )
    assert engine.stdin is not None
    assert engine.stdout is not None
    try:
        engine.stdin.write("".join(map(to_line, requests)))
        engine.stdin.flush()
        loaded = from_line(engine.stdout.readline())
        assert isinstance(loaded, protocol.Loaded), loaded
        answer = from_line(engine.stdout.readline())
        while isinstance(answer, protocol.AnswerPiece):
            answer = from_line(engine.stdout.readline())
        engine.stdin.close()
        assert engine.wait(_PATIENCE) == 0
    finally:
        engine.kill()
        engine.stdout.close()
    assert isinstance(answer, protocol.Answered), answer
    assert answer.text
    assert answer.badge["route"] == "local"


def test_the_window_of_a_build_starts_its_engine(
    build: Path, nothing: dict[str, str], smollm2_gguf: Path, tmp_path: Path
) -> None:
    data = tmp_path / ".local" / "share" / "edgesdk" / "desktop"
    data.mkdir(parents=True)
    (data / "settings.ini").write_text(f"[General]\nmodel={smollm2_gguf}\n")
    window = psutil.Popen([build / _NAME], env=nothing)
    try:
        # The window reads its settings, and tells the engine which model it wants.
        _until((data / "conversations.db").is_file)
        _until(lambda: any(_has_open(child, smollm2_gguf) for child in window.children(True)))
        assert window.poll() is None
    finally:
        window.terminate()
        window.wait(_PATIENCE)


def _has_open(process: psutil.Process, file: Path) -> bool:
    try:
        maps = [each.path for each in process.memory_maps()]
        return str(file) in maps or any(f.path == str(file) for f in process.open_files())
    except psutil.Error:
        return False
