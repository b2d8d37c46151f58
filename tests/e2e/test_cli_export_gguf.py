"""`edgesdk export --format gguf` and `--recipe`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command_line import edgesdk_here
from support.tiny_models import make_tiny

pytest.importorskip("llama_cpp")

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama checkpoint of a few thousand weights, with a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_tiny("llama", folder)
    return folder


def test_a_checkpoint_becomes_a_gguf_bundle_that_runs(tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 400)
    made = edgesdk_here(
        "export", str(tiny), *("--format", "gguf", "--bits", "4"), *("--text", str(text)), home=home
    )
    assert "tiny-q4_k_m: q4_k_m" in made.stdout
    assert "top-1 agreement" in made.stdout
    assert "Writing q4_k_m layers" in made.stderr
    answer = edgesdk_here("run", "tiny-q4_k_m", "fox", "--max-tokens", "4", home=home)
    assert "llama.cpp" in answer.stderr
    edgesdk_here("verify", "tiny-q4_k_m", home=home)


def test_a_recipe_file_is_followed_and_named(tiny: Path, tmp_path: Path) -> None:
    home, recipe = tmp_path / "home", tmp_path / "Small.toml"
    recipe.write_text("[gguf]\ntype = 'q5_1'\n")
    options = ("--format", "gguf", "--recipe", str(recipe), "--quality-tokens", "0", "--json")
    made = json.loads(edgesdk_here("export", str(tiny), *options, home=home).stdout)
    assert made["name"] == "tiny-small-gguf"
    assert made["quantization"]["weights"] == "q5_1"
    stored = Path(made["path"]) / "recipe.toml"
    assert stored.read_text().splitlines()[:1] == ['name = "Small"']


def test_wrong_use_is_named(tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    gguf = ("--format", "gguf", "--quality-tokens", "0")
    error = edgesdk_here("export", str(tiny), *gguf, "--type", "q4_k_x", home=home, expect=1).stderr
    assert "no GGUF type 'q4_k_x'. Choose one of f32, f16" in error
    error = edgesdk_here("export", str(tiny), "--type", "q4_0", home=home, expect=2).stderr
    assert "--type belongs to --format gguf" in error
    error = edgesdk_here("export", str(tiny), "--recipe", "fats", home=home, expect=1).stderr
    assert "Did you mean fast?" in error
    assert "Traceback" not in error
    assert not (home / "bundles").exists() or list((home / "bundles").iterdir()) == []
