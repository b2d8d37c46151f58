"""Where optimum's environment comes from, and what is said when it cannot be had."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from edgesdk_export.optimum import environment
from edgesdk_export.optimum.run_optimum import (
    expected_rope_theta,
    run_optimum,
    with_older_fields,
)
from edgesdk_export.progress import SilentProgress

from edgesdk.errors import ConfigMismatch, DamagedCheckpoint, ExportError


@pytest.fixture(autouse=True)
def _no_named_environment(monkeypatch):
    monkeypatch.delenv(environment.VARIABLE, raising=False)


def test_a_named_environment_with_other_versions_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(environment.VARIABLE, sys.executable)
    with pytest.raises(ExportError, match=r"optimum .*\(needs 2\.1\.0\)"):
        environment.ready_environment(SilentProgress(), place=tmp_path / "unused")
    assert not (tmp_path / "unused").exists()


def test_a_named_environment_that_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path))
    with pytest.raises(ExportError, match="where no Python is"):
        environment.ready_environment(SilentProgress())


def test_an_environment_that_is_there_is_reused(tmp_path):
    python = environment._python_of(tmp_path / "made")
    python.parent.mkdir(parents=True)
    python.touch()
    assert environment.ready_environment(SilentProgress(), place=tmp_path / "made") == python
    assert not python.stat().st_size


def test_a_full_disk_is_refused_before_anything_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "_DISK_BYTES", 2**60)
    with pytest.raises(ExportError, match="GB free"):
        environment.ready_environment(SilentProgress(), place=tmp_path / "env")
    assert not (tmp_path / "env").exists()


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("ERROR: [Errno 28] No space left on device", "the disk is full"),
        (
            "WARNING: Retrying ... NewConnectionError: Temporary failure in name resolution\n"
            "ERROR: No matching distribution found for optimum==2.1.0",
            "index could not be reached",
        ),
        ("ERROR: No matching distribution found for torch==2.13.0", "Python 3.10 to 3.13"),
        ("ERROR: something new", "something new"),
    ],
)
def test_pip_failures_are_told_apart(output, why):
    assert why in str(environment.pip_failure(output))


def test_rope_is_spelled_both_ways():
    config = {
        "model_type": "gpt_neox",
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000.0,
            "partial_rotary_factor": 0.25,
        },
    }
    older = with_older_fields(config)
    assert older["rope_theta"] == older["rotary_emb_base"] == 5000.0
    assert older["partial_rotary_factor"] == older["rotary_pct"] == 0.25
    assert older["rope_scaling"] is None
    assert older["rope_parameters"] == config["rope_parameters"]
    assert expected_rope_theta(config) == expected_rope_theta(older) == 5000.0


def test_a_stretched_rope_keeps_its_stretching():
    rope = {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}
    older = with_older_fields({"rope_parameters": rope})
    assert older["rope_theta"] == 1e6
    assert older["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert expected_rope_theta({"rope_parameters": rope}) is None


def test_a_rope_per_layer_type_is_refused():
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    with pytest.raises(ConfigMismatch, match="one rope per layer type"):
        with_older_fields({"rope_parameters": rope})


def test_an_older_config_is_left_alone():
    config = {"model_type": "gptj", "rotary_dim": 64}
    assert with_older_fields(config) == config
    assert expected_rope_theta({"rope_theta": 1e6}) == 1e6
    assert expected_rope_theta({"rope_theta": 1e6, "rope_scaling": {"type": "linear"}}) is None


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_checkpoint_without_a_config_is_refused(tmp_path: Path, content):
    checkpoint, work = tmp_path / "checkpoint", tmp_path / "work"
    checkpoint.mkdir()
    work.mkdir()
    if content is not None:
        (checkpoint / "config.json").write_text(content)
    with pytest.raises(DamagedCheckpoint, match=r"config\.json"):
        run_optimum(Path(sys.executable), checkpoint, work)
