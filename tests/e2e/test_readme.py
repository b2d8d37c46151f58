"""The README is true, and short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.documented_code import blocks_of, run_page

pytestmark = pytest.mark.e2e

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.usefixtures("documented_store")
def test_its_code_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = blocks_of(README, README.parent)
    assert [block.language for block in blocks].count("python") > 1
    run_page(blocks, tmp_path, monkeypatch)


def test_its_pictures_and_pages_exist() -> None:
    linked = re.findall(r"\]\(((?!http)[^)#]+)", README.read_text(encoding="utf-8"))
    assert len(linked) > 10
    assert [name for name in linked if not (README.parent / name).is_file()] == []


def test_it_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120
