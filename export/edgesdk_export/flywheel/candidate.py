"""Make of what was learned the model that an app would load."""

from __future__ import annotations

from pathlib import Path

from edgesdk.bundle.opening import open_bundle
from edgesdk.loading import load
from edgesdk.model import Model
from edgesdk_export.adapters.export import AdapterJob, export_adapter
from edgesdk_export.flywheel.state import LEARNED, PromotedModel, TurnFolder
from edgesdk_export.pipeline import RECIPE_FILE, ExportJob, export
from edgesdk_export.progress import ExportProgress
from edgesdk_export.recipes import load_recipe


def build_candidate(
    current: PromotedModel, turn: TurnFolder, *, adapter: bool, progress: ExportProgress
) -> PromotedModel:
    """Export what a turn learned: an adapter for the current bundle, or a bundle of its own that
    is quantized as the current one is.

    Raises:
        ExportError: the export failed, or bundles of this kind take no adapters.
    """
    learned, name = turn.path / LEARNED, f"turn-{turn.number:04}"
    if adapter:
        folder = turn.path / "adapter"
        if turn.result("built") is None:
            export_adapter(AdapterJob(learned, current.bundle, folder, name, replace=True))
            turn.finish("built", {"adapter": str(folder)})
        return PromotedModel(turn.number, current.checkpoint, current.bundle, folder)
    folder = turn.path / "bundle"
    if turn.result("built") is None:
        export(_job_like(current.bundle, learned, folder, name), progress)
        turn.finish("built", {"bundle": str(folder)})
    return PromotedModel(turn.number, learned, folder)


def load_promoted(promoted: PromotedModel, *, threads: int | None = None) -> Model:
    """Load a model as an app does."""
    return load(promoted.bundle, adapter=promoted.adapter, threads=threads)


def _job_like(bundle: Path, checkpoint: Path, destination: Path, name: str) -> ExportJob:
    """An export with the recipe of another bundle, for the same device."""
    opened = open_bundle(bundle)
    return ExportJob(
        checkpoint,
        destination,
        name,
        format=opened.manifest.format,
        target=opened.manifest.target,
        recipe=load_recipe(str(bundle / RECIPE_FILE)),
        quality_tokens=0,
        licence=opened.manifest.licence,
        replace=True,
    )
