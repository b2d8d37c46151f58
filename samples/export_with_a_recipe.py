"""Export a checkpoint by a recipe of your own, and read what that cost.

Usage: python export_with_a_recipe.py CHECKPOINT BUNDLE
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.recipes import load_recipe

import edgesdk

RECIPE = """
summary = "4 bits, rounded where the text says that it matters least."

[onnx]
bits = 4
block = 32
scales = "uint8"
offsets = true
method = "gptq"
awq = true

[calibration]
tokens = 4096
"""


def main(checkpoint: Path, bundle: Path) -> None:
    """Write the recipe, export by it, and open the bundle."""
    recipe = bundle.with_suffix(".toml")
    recipe.write_text(RECIPE, encoding="utf-8")
    # The same from the command line: edgesdk export CHECKPOINT --recipe FILE --output BUNDLE
    job = ExportJob(
        checkpoint=checkpoint,
        destination=bundle,
        name=bundle.name,
        recipe=load_recipe(str(recipe)),
        quality_tokens=2048,
    )
    made = export(job, SilentProgress()).manifest
    stored = made.quantization
    print(f"{made.name}: {stored.weights}, {stored.bits_per_weight:.2f} bits per weight")
    if made.quality is not None:
        print(made.quality.line())
    with edgesdk.load(bundle) as model:
        print(model.respond("Name one river.", max_tokens=20).text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
