"""Let quantization-aware training begin where post-training quantization ends.

The student is calibrated as recipe "best" does: channels are scaled (AWQ), and each matrix is
rounded so that later weights make up for the errors of earlier ones (GPTQ). Training then begins
with those grids and codes. A weight stays as near to its own value as its code allows, so that it
crosses to another code as easily as it did before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from edgesdk_quantize.formats import BlockFormat, PackedMatrix
from edgesdk_quantize.formats.blocks import take_rows
from edgesdk_quantize.methods.gptq import RoundingOptions

from edgesdk.errors import RequestError
from edgesdk_export.calibration.channel_scales import apply_awq
from edgesdk_export.calibration.format_mix import one_format
from edgesdk_export.calibration.quantizers import SequentialQuantizer
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.distill.samples import Sample
from edgesdk_export.families import read_decoder
from edgesdk_export.families.mapping import WeightSource
from edgesdk_export.families.registry import reader_of
from edgesdk_export.onnx.stored_weights import matrix_parts
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.weights import Decoder, read_whole

# Of the data; as many as recipe "best" takes of its text.
_TOKENS = 32_768
# Half a step, and a little less, so that rounding comes to the same code.
_HALF = np.float32(0.49)


def calibrate_start(
    model: Any, checkpoint: Checkpoint, linear: BlockFormat, samples: Sequence[Sample]
) -> dict[str, PackedMatrix]:
    """Calibrate a model for a format; its layers get the scaled weights, each near its code.

    Args:
        model: the transformers model of `checkpoint`.
        linear: the format of the linear layers.
        samples: what it is calibrated on.

    Returns:
        The rounded matrices, by the checkpoint's names.

    Raises:
        RequestError: the checkpoint keeps several matrices in one tensor, or there is no sequence.
    """
    sources = reader_of(checkpoint)(checkpoint).sources
    _require_whole_tensors(sources)
    decoder = read_decoder(checkpoint)
    formats = one_format(decoder.spec, linear)
    windows = _windows(samples)
    decoder = apply_awq(decoder, windows, formats)
    quantizer = SequentialQuantizer(decoder, windows, formats, RoundingOptions())
    weights = dict(model.named_parameters())
    matrices = matrix_parts(decoder.spec)
    found: dict[str, PackedMatrix] = {}
    for index in range(decoder.spec.layers):
        for matrix, packed in quantizer.layer(index).items():
            start = 0
            for part in matrices[matrix]:
                name = f"{part}.weight"
                rows = read_whole(decoder.weights[name])
                own = take_rows(packed, slice(start, start + len(rows)))
                start += len(rows)
                found[sources[name].tensor] = own
                values = formats[matrix].dequantize(own, columns=rows.shape[1])
                steps = np.repeat(np.abs(own.scales), formats[matrix].block, axis=1)
                reach = _HALF * steps[:, : rows.shape[1]]
                _set(weights[sources[name].tensor], np.clip(rows, values - reach, values + reach))
    _set_vectors(weights, decoder, sources)
    return found


def _set_vectors(
    weights: Mapping[str, Any], decoder: Decoder, sources: Mapping[str, WeightSource]
) -> None:
    """The gains and biases that scales moved into."""
    for name, tensor in decoder.weights.items():
        if len(tensor.shape) == 1:
            source = sources[name]
            _set(weights[source.tensor], read_whole(tensor) - np.float32(source.add))


def _set(parameter: Any, values: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))


def _windows(samples: Sequence[Sample]) -> Windows:
    """Sequences of one length: the longest that half of the samples have."""
    lengths = sorted(len(sample.ids) for sample in samples)
    if not lengths:
        raise RequestError("There is no sequence to calibrate the student on.")
    length = lengths[len(lengths) // 2]
    chosen = [sample.ids[:length] for sample in samples if len(sample.ids) >= length]
    return Windows(np.array(chosen[: max(1, _TOKENS // length)], np.int64))


def _require_whole_tensors(sources: Mapping[str, WeightSource]) -> None:
    fused = [source.tensor for source in sources.values() if source.stop is not None]
    if fused:
        raise RequestError(
            f"{fused[0]!r} holds several matrices, so training cannot begin calibrated.",
            hint='Write start = "nearest" in [quantize].',
        )
