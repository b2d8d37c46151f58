"""From a recipe's method to what decides the codes of the weights."""

from __future__ import annotations

from dataclasses import dataclass

from edgesdk_quantize.methods.calibrated import Rounding

from edgesdk_export.calibration.collecting import collect_importance
from edgesdk_export.calibration.importance import ImportanceMatrix
from edgesdk_export.calibration.sequential import SequentialQuantizer
from edgesdk_export.calibration.weighted import WeightedQuantizer
from edgesdk_export.gguf import Importance
from edgesdk_export.gguf.mixes import FileType
from edgesdk_export.onnx import LayerQuantizer, WeightScheme
from edgesdk_export.progress import Progress
from edgesdk_export.quality.text import Windows
from edgesdk_export.recipes.model import OnnxRecipe
from edgesdk_export.weights import Decoder


@dataclass(frozen=True)
class CalibrationText:
    """What a checkpoint runs to be calibrated, and what it is called."""

    windows: Windows
    name: str


def layer_quantizer(
    section: OnnxRecipe,
    scheme: WeightScheme,
    decoder: Decoder,
    text: CalibrationText | None,
    progress: Progress,
) -> LayerQuantizer | None:
    """What quantizes the layers of an ONNX model; None: each block by itself."""
    form = scheme.linear
    if text is None or isinstance(form, str):
        return None
    if section.method == "gptq":
        rounding = Rounding(damping=section.damping, sweeps=section.sweeps)
        return SequentialQuantizer(decoder, text.windows, lambda _: form, rounding)
    return WeightedQuantizer(decoder, _importance(decoder, text, progress), lambda _: form)


def tensor_importance(
    file_type: FileType, decoder: Decoder, text: CalibrationText | None, progress: Progress
) -> Importance | None:
    """What ggml's quantizers weigh errors with; None: nothing."""
    if text is None or file_type.is_float:
        return None
    entries = _importance(decoder, text, progress).entries
    return {name: entry.mean for name, entry in entries.items()}


def _importance(decoder: Decoder, text: CalibrationText, progress: Progress) -> ImportanceMatrix:
    progress.stage("Calibrating layers", decoder.spec.layers)
    return collect_importance(decoder, text.windows, text_name=text.name, progress=progress.advance)
