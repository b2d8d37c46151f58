"""The route through optimum, as the export pipeline sees it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

from edgesdk_quantize.divergence import Divergence

from edgesdk.bundle.manifest import Quantization
from edgesdk.errors import ExportError
from edgesdk_export.built import BuiltModel, Steps
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.foreign.equality import float32_logits, measure_divergence
from edgesdk_export.foreign.export import export_foreign
from edgesdk_export.onnx.scheme import WeightScheme, format_name
from edgesdk_export.progress import Progress
from edgesdk_export.quality.text import Windows
from edgesdk_export.selftest.running import onnx_logits


def build_foreign(
    checkpoint: Checkpoint,
    folder: Path,
    choose: Callable[[int], WeightScheme],
    progress: Progress,
    *,
    work: Path,
) -> BuiltModel:
    """Write the ONNX model of any decoder that optimum knows into `folder`.

    Args:
        choose: how the weights of a model of so many parameters are stored.
        work: an empty folder, which must stay until the quality is measured: the reference is the
            rewritten float32 graph in it, which was checked against torch.

    Raises:
        CheckpointError: the checkpoint's config.json cannot be used.
        ExportError: see `export_foreign`; or the checkpoint is a GGUF.
    """
    if checkpoint.container != "safetensors":
        raise ExportError(
            f"{checkpoint.path} is a {checkpoint.container.upper()} file, which optimum cannot"
            " export.",
            hint="Give --via optimum a folder with config.json and safetensors.",
        )
    model = export_foreign(checkpoint.path, folder, choose, progress, work=work)

    def measure(windows: Windows, steps: Steps) -> Divergence:
        return measure_divergence(model.float32_path, folder / model.model_file, windows, steps)

    return BuiltModel(
        shape=model.shape,
        spec=None,
        model_file=model.model_file,
        quantization=Quantization(
            weights=format_name(model.scheme.linear),
            head=format_name(model.scheme.embedding),
            method=model.scheme.method,
            bits_per_weight=round(model.bits_per_weight, 3),
        ),
        exporter=f"optimum {model.versions['optimum']}",
        measure=measure,
        # This route holds the model in memory anyway, and a graph that others drew may have
        # branches, which cannot be cut.
        run=functools.partial(onnx_logits, folder / model.model_file, large=math.inf),
        reference=functools.partial(float32_logits, model.float32_path, work),
        versions=model.versions,
    )
