"""The foreign route as the pipeline sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from edgesdk_quantize.divergence import Divergence, DivergenceMeter, join

from edgesdk.bundle.manifest import Quantization
from edgesdk.errors import CheckpointError
from edgesdk_export.built import BuiltModel, Steps
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.foreign.equality import Float32, open_graph, run_from_empty
from edgesdk_export.foreign.export import export_foreign
from edgesdk_export.onnx import WeightScheme
from edgesdk_export.onnx.scheme import format_name
from edgesdk_export.progress import Progress
from edgesdk_export.quality.text import Windows


def build_foreign(
    checkpoint: Checkpoint,
    folder: Path,
    scheme_name: str | None,
    progress: Progress,
    *,
    work: Path,
) -> BuiltModel:
    """Write the ONNX model of any architecture that optimum knows into `folder`.

    Args:
        work: an empty folder that must stay until the quality is measured: the reference is the
            float32 graph in it, which was checked against torch.

    Raises:
        CheckpointError: the checkpoint is a GGUF.
        ExportError: optimum's environment cannot be made, optimum fails, or its graph cannot be
            rewritten.
    """
    if checkpoint.container != "safetensors":
        raise CheckpointError(
            f"{checkpoint.path} is a GGUF; optimum reads only folders with safetensors.",
            hint="Get the original checkpoint of this model.",
        )
    scheme = None if scheme_name is None else WeightScheme.named(scheme_name)

    def say(line: str) -> None:
        progress.stage(line[:1].upper() + line[1:], 1)

    foreign = export_foreign(checkpoint.path, folder, scheme, say, work=work)
    model_path = folder / foreign.model_file

    def measure(windows: Windows, steps: Steps) -> Divergence:
        reference, candidate = open_graph(foreign.reference), open_graph(model_path)
        parts = []
        for done, row in enumerate(windows.ids):
            meter = DivergenceMeter(row[1:])
            meter.add(_logits(reference, row), _logits(candidate, row))
            parts.append(meter.result())
            steps(done + 1, len(windows.ids))
        return join(parts)

    return BuiltModel(
        shape=foreign.shape,
        spec=None,
        model_file=foreign.model_file,
        quantization=Quantization(
            weights=format_name(foreign.scheme.linear),
            head=format_name(foreign.scheme.embedding),
            method=foreign.scheme.method,
            bits_per_weight=round(foreign.bits_per_weight, 3),
        ),
        exporter=f"optimum {foreign.versions['optimum']}",
        measure=measure,
        versions=foreign.versions,
    )


def _logits(session: onnxruntime.InferenceSession, row: npt.NDArray[np.int64]) -> Float32:
    return run_from_empty(session, row)[:-1]
