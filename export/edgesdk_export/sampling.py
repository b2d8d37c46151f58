"""Reads the sampling that a checkpoint's makers recommend."""

from __future__ import annotations

from edgesdk.bundle.sampling import Sampling, sampling_of_config, sampling_of_metadata
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.checkpoint.checkpoint import read_json


def read_sampling(checkpoint: Checkpoint) -> Sampling | None:
    """From `generation_config.json`, or a GGUF's metadata; None where neither says anything.

    Raises:
        DamagedCheckpoint: the file is not a JSON object.
    """
    if checkpoint.container == "gguf":
        return sampling_of_metadata(checkpoint.config)
    path = checkpoint.folder / "generation_config.json"
    return sampling_of_config(read_json(path)) if path.is_file() else None
