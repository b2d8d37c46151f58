"""Measure one turn of the flywheel: how much less is escalated, and what that costs.

    python -m benchmarks.flywheel --folder FOLDER --out benchmarks/results/flywheel.json

SmolLM2-135M-Instruct as int4 serves the easiest tasks of four families of reasoning-gym, which it
fails at; the cloud is an endpoint on loopback that knows the answers. Every task of the first part
goes there, because the app prefers the cloud as long as the device fails. Then the flywheel turns
once on the journal. Before and after, the confidence is trained and calibrated on the same prompts
at the same risk, and the client gets the same prompts of unseen seeds; none of their questions was
trained on. A run that was stopped goes on from its last finished step.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from edgesdk_export.distill.verifiers import same_as_expected
from edgesdk_export.flywheel.candidate import load_promoted
from edgesdk_export.flywheel.examples import Example, write_examples
from edgesdk_export.flywheel.recalibration import recalibrate
from edgesdk_export.flywheel.recipe import FlywheelRecipe
from edgesdk_export.flywheel.state import PromotedModel
from edgesdk_export.flywheel.turn import FlywheelJob, turn
from edgesdk_export.pipeline import ExportJob, export

from benchmarks.flywheel_tasks import FAMILY_NAMES, Part, Task, knowing_cloud, tasks
from edgesdk.cli.output import stage_progress_bar
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.storage.journal import Journal
from edgesdk.store import Store
from edgesdk.system.atomic_files import write_atomically

_CHECKPOINT = "smollm2-135m-instruct"
_MAX_TOKENS = 16
# Prompts of each part, and the seed that they are drawn with.
_SEEDS: dict[Part, int] = {"training": 1, "profile": 2, "calibration": 3, "test": 4}


@click.command()
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--training", default=2000, show_default=True, help="Prompts that are served first.")
@click.option("--profile", default=60, show_default=True, help="Prompts of the confidence.")
@click.option("--calibration", default=100, show_default=True, help="Prompts of the threshold.")
@click.option("--test", default=120, show_default=True, help="Prompts that are counted.")
@click.option("--steps", default=300, show_default=True, help="Optimizer steps.")
@click.option("--only-before", is_flag=True, help="Stop before the flywheel turns.")
def main(
    folder: Path,
    out: Path,
    training: int,
    profile: int,
    calibration: int,
    test: int,
    steps: int,
    only_before: bool,
) -> None:
    """Serve, turn the flywheel, serve again, and write what changed."""
    counts: dict[Part, int] = {
        "training": training, "profile": profile, "calibration": calibration, "test": test,
    }  # fmt: skip
    parts = {part: tasks(part, counts[part], seed=seed) for part, seed in _SEEDS.items()}
    folder.mkdir(parents=True, exist_ok=True)
    recipe = FlywheelRecipe.model_validate(
        {
            "collecting": {"near": 0.95, "calibration": 0.0, "max_length": 96},
            "learning": {
                "lora_rank": 12, "lora_layers": 10, "steps": steps, "learning_rate": 1.5e-3,
                "save_every": 60,
            },
            "deciding": {"max_tokens": _MAX_TOKENS},
        }
    )  # fmt: skip
    base = PromotedModel(0, Store().get(_CHECKPOINT, "checkpoint").path, folder / "base")
    known = {task.question: task.answer for found in parts.values() for task in found}
    with knowing_cloud(known) as cloud:
        _exported(base)
        journal = folder / "journal.db"
        _once(folder, "served", lambda: _served(base, parts["training"], cloud, journal))
        before = _once(
            folder, "before", lambda: _measured(base, parts, cloud, recipe, folder / "profile")
        )
        if only_before:
            return
        labelled = folder / "labelled.jsonl"
        write_examples(labelled, _interleaved(parts["profile"], parts["calibration"]))
        job = FlywheelJob(
            folder / "wheel",
            (journal,),
            base.checkpoint,
            base.bundle,
            recipe,
            clouds=(cloud,),
            labelled=labelled,
        )
        with stage_progress_bar() as progress:
            result = turn(job, progress)
        promoted = result.current
        after = _once(
            folder, "after", lambda: _measured(promoted, parts, cloud, recipe, folder / "profile-1")
        )
    bundle_bytes = _size(base.bundle)
    report = {
        "model": _CHECKPOINT,
        "families": list(FAMILY_NAMES),
        "prompts": counts,
        "recipe": recipe.model_dump(mode="json"),
        "before": before,
        "after": after,
        "escalated_ratio": after["escalated"] / before["escalated"],
        "turn": result.to_json()["verdict"] | {"examples": result.examples},
        "bundle_bytes": bundle_bytes,
        "adapter_bytes": 0 if promoted.adapter is None else _size(promoted.adapter),
        "machine": f"{platform.machine()}, {platform.system()}",
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(report, indent=2) + "\n")
    print(
        f"escalated {before['escalated']:.1%} before, {after['escalated']:.1%} after; adapter"
        f" {report['adapter_bytes'] / bundle_bytes:.1%} of the bundle"
    )
    for figure in result.verdict.regressions:
        print(f"{figure.name}: {figure.old:.3f} before, {figure.new:.3f} after")


def _once(folder: Path, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a step came to; it is done once."""
    file = folder / f"{name}.json"
    if not file.is_file():
        write_atomically(file, json.dumps(work(), indent=2) + "\n")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _exported(base: PromotedModel) -> None:
    if not base.bundle.exists():
        job = ExportJob(base.checkpoint, base.bundle, "base", scheme="int4", quality_tokens=0)
        with stage_progress_bar() as progress:
            export(job, progress)


def _served(model: PromotedModel, served: list[Task], cloud: Cloud, path: Path) -> dict[str, Any]:
    journal = Journal(path, keep_texts=True)
    with load_promoted(model, threads=1) as loaded:
        client = HybridClient(loaded, cloud=cloud, journal=journal)
        for task in served:
            reply = client.respond(
                task.messages(), max_tokens=_MAX_TOKENS, temperature=0.0, prefer="cloud"
            )
            assert reply.route == "cloud", reply.reason
        client.close()
    journal.close()
    return {"prompts": len(served)}


def _measured(
    model: PromotedModel,
    parts: dict[Part, list[Task]],
    cloud: Cloud,
    recipe: FlywheelRecipe,
    profile: Path,
) -> dict[str, Any]:
    """Train and calibrate the confidence of a model, then serve the test's prompts with it."""
    with load_promoted(model, threads=1) as loaded:
        calibrated = recalibrate(
            loaded, (cloud,), _examples(parts["profile"]), _examples(parts["calibration"]),
            recipe.deciding, same_as_expected, profile,
        )  # fmt: skip
        routes: list[dict[str, Any]] = []
        with HybridClient(loaded, cloud=cloud, profile=profile) as client:
            for task in parts["test"]:
                reply = client.respond(task.messages(), max_tokens=_MAX_TOKENS, temperature=0.0)
                local = None if reply.local is None else task.right(reply.local.text)
                routes.append({"family": task.family, "route": reply.route, "local_right": local})
    kept = [each for each in routes if each["route"] == "local"]
    return {
        "calibration": asdict(calibrated),
        "escalated": 1 - len(kept) / len(routes),
        "escalated_by_family": {
            name: 1 - sum(each["family"] == name for each in kept)
            / sum(each["family"] == name for each in routes)
            for name in FAMILY_NAMES
        },
        "kept": len(kept),
        "kept_wrong": sum(not each["local_right"] for each in kept),
    }  # fmt: skip


def _examples(found: list[Task]) -> list[Example]:
    return [Example(tuple(task.messages()), task.answer) for task in found]


def _interleaved(profile: list[Task], calibration: list[Task]) -> list[Example]:
    """Prompts as a turn divides them again: every second one calibrates."""
    count = min(len(profile), len(calibration))
    pairs = zip(_examples(profile[:count]), _examples(calibration[:count]), strict=True)
    return [example for pair in pairs for example in pair]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
