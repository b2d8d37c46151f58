"""Add a LoRA to a checkpoint's weights while they are read, before anything rounds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgesdk.bundle.opening import hash_file
from edgesdk_export.adapters.low_rank import LowRankChange
from edgesdk_export.adapters.peft_folder import WEIGHTS_NAME, read_peft_folder
from edgesdk_export.checkpoint.weight_files import ADAPTER_CONFIG
from edgesdk_export.weights import Decoder, Float32, LazyTensor


@dataclass(frozen=True)
class _MergedMatrix:
    """A matrix with its low-rank change; a `LazyTensor`."""

    tensor: LazyTensor
    change: LowRankChange

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    def rows(self, start: int, stop: int) -> Float32:
        added = self.change.up[start:stop] @ self.change.down
        return self.tensor.rows(start, stop) + added.astype(np.float32, copy=False)


def with_merged_adapter(decoder: Decoder, folder: Path | None, *, where: str) -> Decoder:
    """The decoder with the LoRA that PEFT saved in `folder` in its weights; None changes nothing.

    Args:
        where: what the decoder is of, for errors.

    Raises:
        CheckpointError: see `edgesdk_export.adapters.peft_folder.read_peft_folder`.
    """
    if folder is None:
        return decoder
    weights: dict[str, LazyTensor] = dict(decoder.weights)
    for name, change in read_peft_folder(folder, decoder.spec, where=where).changes.items():
        weights[f"{name}.weight"] = _MergedMatrix(weights[f"{name}.weight"], change)
    return Decoder(decoder.spec, weights)


def adapter_hash(folder: Path | None) -> str | None:
    """What stands for the files of a LoRA that PEFT saved."""
    if folder is None:
        return None
    files = (folder / ADAPTER_CONFIG, folder / WEIGHTS_NAME)
    return " ".join(hash_file(path) for path in files if path.is_file())
