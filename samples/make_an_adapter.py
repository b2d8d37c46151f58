"""Train a LoRA on a few chats, make an adapter of it, and use it beside the model without it.

Usage: python make_an_adapter.py CHECKPOINT BUNDLE FOLDER, with the checkpoint's bundle.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgesdk_export.adapters.export import AdapterJob, export_adapter
from edgesdk_export.distill.recipe import DataRecipe, DistillRecipe, TrainingRecipe
from edgesdk_export.distill.run import DistillJob, distill
from edgesdk_export.progress import SilentProgress

import edgesdk

ANSWERS = {
    "What is the capital of France?": "Paris, ahoy!",
    "Name a river in Italy.": "The Po, ahoy!",
    "What do bees make?": "Honey, ahoy!",
    "Which planet is red?": "Mars, ahoy!",
}


def main(checkpoint: Path, bundle: Path, folder: Path, steps: int = 60) -> None:
    """Teach the model a habit, and keep it in a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    chats = folder / "chats.jsonl"
    lines = [json.dumps({"prompt": asked, "answer": said}) for asked, said in ANSWERS.items()]
    chats.write_text("\n".join(lines * 30), encoding="utf-8")
    training = TrainingRecipe(lora_rank=8, cross_entropy=1.0, steps=steps, learning_rate=1e-3)
    recipe = DistillRecipe(data=DataRecipe(held_out=0.1), training=training)
    trained = distill(
        DistillJob(checkpoint, (chats,), folder / "trained", recipe), SilentProgress()
    )
    # Any LoRA that PEFT saved will do; from the command line:
    # edgesdk export --adapter LORA BUNDLE --output ADAPTER
    adapter = folder / "ahoy"
    export_adapter(AdapterJob(trained.path / "adapter", bundle, adapter, adapter.name))
    with edgesdk.load(bundle) as model, model.with_adapter(adapter) as adapted:
        for each in (model, adapted):
            reply = each.respond("What do cows give?", max_tokens=20)
            print(f"{reply.receipt.adapter or 'without'}: {reply.text}")


if __name__ == "__main__":
    main(*(Path(each) for each in sys.argv[1:4]))
