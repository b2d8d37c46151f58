"""The names of `edgesdk.hybrid`, and what an import of the client does without."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import edgesdk.hybrid

FOLDER = Path(edgesdk.hybrid.__file__).parent


def test_every_public_name_is_where_the_list_says() -> None:
    names = edgesdk.hybrid.__all__
    assert {"HybridClient", "Cloud", "Policy", "Budget", "Journal", "Router"} <= set(names)
    for name in names:
        assert getattr(edgesdk.hybrid, name) is not None


def imported_by(path: Path) -> set[str]:
    """The modules of edgesdk that a module imports when it is loaded."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgesdk."):
            found.add(node.module or "")
    return found


def test_the_client_loads_no_monitor() -> None:
    """Audits, drift and guarantee are optional: a client that needs none loads none."""
    todo, seen = ["edgesdk.hybrid.client", "edgesdk.hybrid.chat"], set()
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            path = import_module(module).__file__
            assert path is not None
            todo += imported_by(Path(path))
    assert "edgesdk.hybrid.confidence.confidence" in seen
    assert not [module for module in seen if ".monitor" in module]
    assert (FOLDER / "monitor" / "monitor.py").is_file()
