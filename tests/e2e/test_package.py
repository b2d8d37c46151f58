"""What is shipped, and what importing it costs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import grimp
import pytest

import edgesdk

ROOT = Path(__file__).parents[2]
PACKAGES = ("edgesdk", "edgesdk_quantize", "edgesdk_export")
HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "optimum", "llama_cpp", "onnxruntime")
pytestmark = pytest.mark.e2e


def _python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    ).stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = set(
        json.loads(_python("import edgesdk, sys, json; print(json.dumps([*sys.modules]))"))
    )
    assert loaded.isdisjoint(HEAVY)


def test_public_names_do_not_pull_in_training_or_export_packages() -> None:
    code = (
        "import edgesdk, sys, json; [getattr(edgesdk, n) for n in edgesdk.__all__];"
        "print(json.dumps([*sys.modules]))"
    )
    loaded = set(json.loads(_python(code)))
    absent = {"torch", "transformers", "onnx", "optimum", "llama_cpp", "edgesdk_export"}
    assert loaded.isdisjoint(absent)


def test_import_costs_little_more_than_numpy() -> None:
    """The budget is 0.15 s; instructions are not countable everywhere, so count new modules.

    A module costs 0.1-2 ms to import: under 40 modules beyond numpy's stay far inside the budget,
    and unlike a clock the count does not depend on what else the machine is doing.
    """
    code = (
        "import numpy, sys; before = len(sys.modules);"
        "import edgesdk; print(len(sys.modules) - before)"
    )
    assert int(_python(code)) < 40


def test_the_public_names_are_those_of_the_stub() -> None:
    stub = ast.parse((ROOT / "edgesdk" / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    names = {alias.asname for node in imports for alias in node.names} | {"__version__"}
    assert set(edgesdk.__all__) == names
    for name in names:
        assert name is not None
        assert getattr(edgesdk, name) is not None
    with pytest.raises(AttributeError, match="lod"):
        edgesdk.lod  # noqa: B018


def test_wheel_has_its_packages_and_no_other(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"edgesdk", "edgesdk_desktop", "edgesdk_export", "edgesdk_quantize"}
    for package in top:
        assert f"{package}/py.typed" in names


def test_imports_go_one_way() -> None:
    """The contracts stand in pyproject.toml, under [tool.importlinter]."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stdout


def test_no_imports_go_in_a_circle() -> None:
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    # Modules that import nothing are on no circle; neither is, then, who imports only such.
    while leaves := {module for module, targets in imports.items() if not targets}:
        imports = {m: targets - leaves for m, targets in imports.items() if m not in leaves}
    while tops := imports.keys() - {target for targets in imports.values() for target in targets}:
        imports = {m: targets for m, targets in imports.items() if m not in tops}
    assert imports == {}
