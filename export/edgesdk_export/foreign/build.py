"""The route through optimum, as the export pipeline sees it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

from edgesdk_quantize.divergence import Divergence

from edgesdk.bundle.manifest import Quantization
from edgesdk.errors import ExportError
from edgesdk_export.built import BuiltModel, Steps
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.foreign.equality import measure_divergence
from edgesdk_export.foreign.export import export_foreign
from edgesdk_export.onnx.scheme import WeightScheme, format_name
from edgesdk_export.progress import Progress
from edgesdk_export.quality.text import Windows


def build_foreign(
    checkpoint: Checkpoint, folder: Path, scheme_name: str | None, progress: Progress
) -> BuiltModel:
    """Write the ONNX model of any decoder that optimum knows into `folder`.

    Quality is measured against the rewritten float32 graph, which was checked against torch. That
    graph lies beside `folder` as long as the returned value lives.

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
    work = Path(tempfile.mkdtemp(prefix=".optimum-", dir=folder.parent))
    try:
        scheme = None if scheme_name is None else WeightScheme.named(scheme_name)
        model = export_foreign(checkpoint.path, folder, scheme, progress, work=work)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    measurement = _Measurement(model.float32_path, folder / model.model_file)
    weakref.finalize(measurement, shutil.rmtree, work, ignore_errors=True)
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
        exporter=", ".join(f"{name} {version}" for name, version in model.versions.items()),
        measure=measurement,
    )


@dataclass(frozen=True)
class _Measurement:
    """Compares the float32 graph with the stored one; the former is removed with this value."""

    reference: Path
    candidate: Path

    def __call__(self, windows: Windows, steps: Steps) -> Divergence:
        return measure_divergence(self.reference, self.candidate, windows, steps)
