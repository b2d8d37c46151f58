"""Distilling with several processes, after a kill, and on a disk that fills up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from edgesdk_export.distill.recipe import DistillRecipe, read_training_recipe
from edgesdk_export.distill.run import DistillJob, distill
from edgesdk_export.progress import SilentProgress
from support.command_line import MAIN, environment
from support.small_disk import grow, small_disk
from support.tiny_models import make_tiny

from edgesdk.errors import TrainingError

pytestmark = pytest.mark.e2e

RECIPE = """
[student]
layers = 2
[data]
max_length = 32
held_out = 0.1
[training]
steps = 6
batch = 4
micro_batch = 2
save_every = 2
warmup = 0.0
bfloat16 = false
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A folder with a checkpoint, a text and a recipe."""
    folder = tmp_path_factory.mktemp("places")
    make_tiny("llama", folder / "hf", num_hidden_layers=3)
    text = " ".join(f"{i} times {i} is {i * i}." for i in range(150))
    (folder / "text.txt").write_text(text)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def arguments(places: Path, output: Path) -> list[str]:
    given = ["distill", places / "hf", places / "text.txt", "--recipe", places / "recipe.toml"]
    return [str(part) for part in (*given, "--output", output)]


def losses(student: Path) -> list[float]:
    report = json.loads((student / "distillation.json").read_text())
    return [loss for _, loss in report["losses"]]


@pytest.fixture(scope="module")
def alone(places, tmp_path_factory) -> list[float]:
    """The losses of one process that is left alone."""
    student = tmp_path_factory.mktemp("alone") / "student"
    recipe = read_training_recipe(places / "recipe.toml", DistillRecipe)
    job = DistillJob(places / "hf", (places / "text.txt",), student, recipe)
    distill(job, SilentProgress())
    found = losses(student)
    assert len(found) == 6
    return found


def test_two_processes_learn_what_one_does(places, alone, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2"]
    launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    command = [*launch, "--module", "edgesdk", *arguments(places, tmp_path / "student")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "student") == pytest.approx(alone, rel=1e-3)
    # One of them says what came of it, and nothing is left over.
    assert done.stdout.count("Next: edgesdk export") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


@pytest.mark.nightly
def test_a_killed_run_goes_on_to_the_same_losses(places, alone, tmp_path):
    student, work = tmp_path / "student", tmp_path / ".student.training"
    command = [*MAIN, *arguments(places, student)]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 240
        while not list(work.glob("checkpoints/checkpoint-2/trainer_state.json")):
            assert run.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(run.pid, signal.SIGKILL)
    assert not student.exists()
    done = subprocess.run(command, capture_output=True, env=environment(), timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert b"were finished by the run before" in done.stderr
    assert losses(student) == alone
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_full_disk_keeps_the_last_checkpoint(places, alone, tmp_path):
    recipe = read_training_recipe(places / "recipe.toml", DistillRecipe)
    room = 2_400_000
    with small_disk(tmp_path / "small", room) as disk:
        job = DistillJob(places / "hf", (places / "text.txt",), disk / "student", recipe)
        with pytest.raises(TrainingError, match=r"disk that holds .* is full.*step 2 is kept"):
            distill(job, SilentProgress())
        assert not job.destination.exists()
        checkpoints = disk / ".student.training" / "checkpoints"
        assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-2"]
        grow(disk, 100_000_000)
        assert [loss for _, loss in distill(job, SilentProgress()).losses] == alone
        assert [path.name for path in disk.iterdir()] == ["student"]
