"""Measure how large the inputs of each matrix are, and store it as llama.cpp does.

Layout (llama.cpp's tools/imatrix/imatrix.cpp, `save_imatrix`): for every matrix, by its ggml name,

    NAME.in_sum2   float32 [1, K], sums of the squared inputs over all tokens
    NAME.counts    float32 [1, 1], how many tokens

and the metadata general.type = "imatrix", imatrix.datasets (strings), imatrix.chunk_count and
imatrix.chunk_size (tokens). Matrices that share an input have equal entries, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from edgesdk.bundle.spec import DecoderSpec
from edgesdk.errors import CheckpointError
from edgesdk.system.atomic_files import atomic_path
from edgesdk_export.calibration.layer_runner import TAPS, SquaresMeter, embed_windows, run_layer
from edgesdk_export.checkpoint.gguf_reader import read_gguf
from edgesdk_export.gguf.tensors import target_tensors
from edgesdk_export.onnx import FloatTensors
from edgesdk_export.onnx.partial_models import tapped_layer_model
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.resume import Arrays, ResumeState, carry_through_layers
from edgesdk_export.weights import Decoder, Float32, read_whole

_SQUARES, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class ChannelSquares:
    """The inputs of one matrix, summed up.

    Attributes:
        sums: float32 [K], sums of squares over tokens.
        tokens: how many.
    """

    sums: Float32
    tokens: int

    @property
    def mean(self) -> Float32:
        """float32 [K]: the mean square of each channel, its importance."""
        mean: Float32 = self.sums / np.float32(max(self.tokens, 1))
        return mean


@dataclass(frozen=True)
class ImportanceMatrix:
    """The contents of an imatrix file.

    Attributes:
        entries: by the matrix's name in GGUF files ("blk.0.attn_q.weight").
        datasets: names of the texts.
        chunk_tokens: how long the windows were.
    """

    entries: Mapping[str, ChannelSquares]
    datasets: tuple[str, ...]
    chunk_tokens: int

    @property
    def chunks(self) -> int:
        """How many windows were run."""
        tokens = max((entry.tokens for entry in self.entries.values()), default=0)
        return -(-tokens // self.chunk_tokens)


def write_importance(matrix: ImportanceMatrix, path: Path) -> None:
    """Write the file; what stood there is replaced at once, or not at all."""
    with atomic_path(path) as beside:
        _write(matrix, beside)


def _write(matrix: ImportanceMatrix, path: Path) -> None:
    writer = GGUFWriter(path, "imatrix")
    # llama.cpp's files name no architecture.
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(matrix.datasets))
    writer.add_uint32("imatrix.chunk_count", matrix.chunks)
    writer.add_uint32("imatrix.chunk_size", matrix.chunk_tokens)
    for name, entry in sorted(matrix.entries.items()):
        writer.add_tensor(name + _SQUARES, entry.sums[None].astype(np.float32))
        writer.add_tensor(name + _COUNTS, np.array([[entry.tokens]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_importance(path: Path) -> ImportanceMatrix:
    """Read a file that `write_importance` or llama.cpp's `llama-imatrix` wrote.

    Raises:
        CheckpointError: it is no importance matrix, or an entry is broken.
        CheckpointError: it is no readable GGUF file.
    """
    metadata, tensors = read_gguf(path)
    if metadata.get("general.type") != "imatrix":
        raise CheckpointError(
            f"{path} is a GGUF file, but no importance matrix.",
            hint="Give a file that llama-imatrix wrote with --output-format gguf.",
        )
    entries = {}
    for name in sorted(tensors):
        matrix, suffix, _ = name.rpartition(_SQUARES)
        if not suffix:
            continue
        counts = tensors.get(matrix + _COUNTS)
        if counts is None:
            raise CheckpointError(f"{path}: {matrix} has sums but no counts.")
        sums = read_whole(tensors[name]).reshape(-1)
        tokens = float(read_whole(counts).max())
        if not (np.isfinite(sums).all() and (sums >= 0).all() and tokens >= 1):
            raise CheckpointError(
                f"{path}: the entry of {matrix} holds values that are no sums of squares.",
                hint="Make the file again.",
            )
        entries[matrix] = ChannelSquares(sums, round(tokens))
    return ImportanceMatrix(
        entries, tuple(metadata.get("imatrix.datasets", ())), int(metadata["imatrix.chunk_size"])
    )


def gguf_names(spec: DecoderSpec) -> dict[str, tuple[str, ...]]:
    """Tap of a layer ("layers.3.qkv") -> the GGUF matrices that read the same input."""
    reads = {"qkv": ("q", "k", "v"), "o": ("o",), "gate": ("gate", "up"), "down": ("down",)}
    # Where matrices are fused, as in phi3, one tensor holds several parts.
    holders = {part: tensor.name for tensor in target_tensors(spec) for part in tensor.parts}
    names = {}
    for index in range(spec.layers):
        for tap, parts in reads.items():
            tensors = [holders[f"layers.{index}.{part}.weight"] for part in parts]
            names[f"layers.{index}.{tap}"] = tuple(dict.fromkeys(tensors))
    return names


def collect_importance(
    decoder: Decoder,
    windows: Windows,
    *,
    text_name: str,
    resume: ResumeState | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImportanceMatrix:
    """Run the text through the float32 layers, one in memory at a time, and sum up squares.

    Args:
        text_name: what the file will call the text.
        resume: where the pass goes on from if it was killed.
        progress: called with the number of layers done.
    """
    spec, tensors = decoder.spec, FloatTensors(decoder)

    def step(index: int, carried: Arrays) -> Arrays:
        meters = {tap: SquaresMeter() for tap in TAPS}
        part = tapped_layer_model(spec, tensors, index, TAPS)
        observers = {tap: meter.add for tap, meter in meters.items()}
        states = run_layer(part, carried["states"], observers, prepack=False)
        sums = {f"layers.{index}.{tap}": meter.sums for tap, meter in meters.items()}
        return {**carried, **sums, "states": states}

    def first() -> Arrays:
        return {"states": embed_windows(decoder, windows)}

    found = carry_through_layers(resume, "importance", spec.layers, first, step, progress)
    entries = {
        name: ChannelSquares(found[tap], windows.ids.size)
        for tap, names in gguf_names(spec).items()
        for name in names
    }
    return ImportanceMatrix(entries, (text_name,), windows.ids.shape[1])
