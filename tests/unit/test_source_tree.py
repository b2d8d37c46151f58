"""Rules of the text that no linter knows."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("edgesdk", "export", "quantize", "samples", "benchmarks")


def _sources(*packages: str) -> list[Path]:
    return [path for package in packages or PACKAGES for path in (ROOT / package).rglob("*.py")]


def test_no_file_grows_past_one_idea() -> None:
    long = {str(p.relative_to(ROOT)): n for p in _sources() if (n := _lines(p)) > 420}
    assert long == {}


def test_nothing_is_left_for_later() -> None:
    marker = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    found = [str(path.relative_to(ROOT)) for path in _sources() if marker.search(path.read_text())]
    assert found == []


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in _sources(*PACKAGES, "tests/support"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_two_test_files_share_a_name() -> None:
    """pytest imports them by it, and leaves out the second where both are collected."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in (ROOT / "tests").rglob("test_*.py"):
        places[path.name].append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in _sources()
        if ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert silent == []


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())
