"""What is shipped, and what importing it costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edgesdk

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "optimum", "llama_cpp", "onnxruntime")
PUBLIC = [
    "Acted",
    "AsyncHybridStream",
    "AsyncReplyStream",
    "Audits",
    "Budget",
    "BudgetExceeded",
    "Bundle",
    "BundleError",
    "Calibrated",
    "Chat",
    "CheckpointError",
    "Cloud",
    "CloudBroken",
    "CloudBusy",
    "CloudError",
    "CloudRefused",
    "CloudUnreachable",
    "Confidence",
    "ConfigMismatch",
    "ContextOverflow",
    "DamagedBundle",
    "DamagedCheckpoint",
    "DeadlineExceeded",
    "DownloadFailed",
    "DraftGate",
    "EdgeError",
    "Effort",
    "EmptyPrompt",
    "EngineError",
    "ExportError",
    "HashMismatch",
    "HybridChat",
    "HybridClient",
    "HybridReceipt",
    "HybridReply",
    "HybridStream",
    "IncompleteStructure",
    "InvalidOption",
    "InvalidText",
    "Journal",
    "Kept",
    "DeferredReply",
    "MissingExtra",
    "Model",
    "NotEnoughMemory",
    "NotEnoughSpace",
    "Options",
    "Overflow",
    "Plan",
    "Policy",
    "PrefixCache",
    "Promise",
    "PromptGate",
    "OfflineQueue",
    "Receipt",
    "RejectedStructure",
    "Reply",
    "ReplyStream",
    "RequestError",
    "SpendingLimits",
    "Store",
    "StoreBusy",
    "StoreError",
    "StructureError",
    "TemplateError",
    "ToolCall",
    "ToolRoundsExceeded",
    "ToolRun",
    "UnknownArchitecture",
    "UnknownModel",
    "UnsupportedBundle",
    "__version__",
    "load",
    "open_bundle",
    "plan",
    "train_prompts",
]

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


def test_the_public_names_are_pinned() -> None:
    assert sorted(edgesdk.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(edgesdk, name) is not None
    with pytest.raises(AttributeError, match="lod"):
        edgesdk.lod  # noqa: B018


def test_wheel_has_three_packages_and_no_other(tmp_path: Path) -> None:
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
    assert top == {"edgesdk", "edgesdk_export", "edgesdk_quantize"}
    for package in top:
        assert f"{package}/py.typed" in names


def test_imports_go_one_way() -> None:
    """samples -> edgesdk; edgesdk_export -> edgesdk_quantize -> edgesdk's bundle and errors."""
    allowed = ("edgesdk.bundle", "edgesdk.engines.devices", "edgesdk.errors", "edgesdk.system")
    offences = []
    for package, folder in (
        ("edgesdk", "edgesdk"),
        ("edgesdk_quantize", "quantize/edgesdk_quantize"),
        ("edgesdk_export", "export/edgesdk_export"),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            for line in path.read_text().splitlines():
                words = line.split()
                if len(words) < 2 or words[0] not in ("import", "from"):
                    continue
                target = words[1]
                top = target.split(".")[0]
                wrong = {
                    "edgesdk": top in ("edgesdk_export", "edgesdk_quantize"),
                    "edgesdk_quantize": top == "edgesdk_export"
                    or (top == "edgesdk" and not target.startswith(allowed)),
                    "edgesdk_export": top == "edgesdk"
                    and target != "edgesdk"
                    and not target.startswith(allowed),
                }[package]
                if wrong and "cli" not in path.parts:
                    offences.append(f"{path.relative_to(ROOT)}: {line.strip()}")
    assert offences == []
