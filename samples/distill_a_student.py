"""Cut a smaller student out of a model, train it on what the model says, and export it.

Usage: python distill_a_student.py CHECKPOINT STUDENT TEXT...
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgesdk_export.distill.recipe import DistillRecipe, StudentRecipe, TrainingRecipe
from edgesdk_export.distill.run import DistillJob, distill
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress

import edgesdk


def main(checkpoint: Path, student: Path, texts: list[Path], layers: int, steps: int = 500) -> None:
    """Train a student of so many layers, and make a bundle of it."""
    recipe = DistillRecipe(
        student=StudentRecipe(layers=layers),
        training=TrainingRecipe(loss="forward_kl", hidden_states=0.1, steps=steps),
    )
    # The teacher is the checkpoint itself. The same job goes on where it was stopped.
    made = distill(DistillJob(checkpoint, tuple(texts), student, recipe), SilentProgress())
    print(f"Of the layers {made.layers} are left.")
    for title, found in (("cut", made.before), ("trained", made.after)):
        print(f"{title}: KL divergence {found.kl:.3f}, top-1 agreement {found.top1:.1%}")
    bundle = student.with_name(f"{student.name}-bundle")
    export(ExportJob(student, bundle, bundle.name, quality_tokens=1024), SilentProgress())
    with edgesdk.load(bundle) as model:
        print(model.respond("Name one river.", max_tokens=20).text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(each) for each in sys.argv[3:]], layers=20)
