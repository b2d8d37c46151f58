"""Quantize layer by layer, each on what the quantized layers before it really give.

The calibration text goes through the layers as the finished model will run it. Before a layer is
quantized, the text passes it once with its own weights, and the second moments of all its inputs
are summed up; then it passes the quantized layer, and the next one is calibrated on what comes out
(Frantar et al., 2022, arXiv:2210.17323). In memory are the text's hidden states, one layer's
weights, and one layer's moments.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from edgesdk_quantize.formats import BlockFormat, Packed
from edgesdk_quantize.formats.blocks import check_finite
from edgesdk_quantize.methods.calibrated import Rounding, quantize_calibrated
from edgesdk_quantize.methods.moments import Moments, MomentsMeter

from edgesdk.errors import ExportError
from edgesdk_export.calibration.compensating import compensating_layer
from edgesdk_export.calibration.kept_blocks import kept_blocks
from edgesdk_export.calibration.running import TAP_OF, TAPS, Quantized, embedded, run_layer
from edgesdk_export.onnx import FloatTensors, PartModel, layer_model
from edgesdk_export.onnx.parts import tapped_layer_model
from edgesdk_export.quality.text import Windows
from edgesdk_export.resume import Arrays, Kept
from edgesdk_export.weights import Decoder, Float32


class SequentialQuantizer:
    """GPTQ over a stream of hidden states; a `LayerQuantizer`.

    Args:
        windows: the calibration text.
        forms: the format of each stored matrix of the layers.
        kept: where the hidden states between layers are on the disk, for a process that goes on.
        compensate: whether matrices that write into the residual stream make up for what it has
            lost, see `calibration.compensating`; not where a norm comes between.
    """

    def __init__(
        self,
        decoder: Decoder,
        windows: Windows,
        forms: Mapping[str, BlockFormat],
        rounding: Rounding,
        kept: Kept | None = None,
        *,
        compensate: bool = False,
    ) -> None:
        self._decoder = decoder
        self._windows = windows
        self._tensors = FloatTensors(decoder)
        self._forms = forms
        self._rounding = rounding
        self._kept = kept
        # What a norm follows is no longer linear in what it was made of.
        self._compensate = compensate and decoder.spec.norm_placement == "pre"
        self._next = 0
        # Between layers: the quantized model's hidden states, and the original's where it counts.
        self._carried: Arrays | None = None

    @property
    def method(self) -> str:
        """In words for the manifest."""
        tokens = self._windows.ids.size
        text = f"GPTQ in activation order on {tokens} tokens, importance-weighted scales"
        return text + ", earlier errors compensated" if self._compensate else text

    @property
    def formats(self) -> str:
        """See `LayerQuantizer.formats`."""
        return format_names(self._forms)

    def layer(self, index: int) -> Mapping[str, Packed]:
        """See `LayerQuantizer.layer`."""
        if self._carried is None:
            self._carried = self._resume(index)
        for passed in range(self._next, index):
            self._quantize(passed)
        return self._quantize(index)

    def _resume(self, index: int) -> Arrays:
        """What is carried into layer `index`, or into the last one that has it on the disk."""
        for start in range(index, 0, -1):
            found = None if self._kept is None else self._kept.load(_boundary(start))
            if found is not None:
                self._next = start
                return found
        states = embedded(self._decoder, self._windows)
        return {"states": states, "clean": states} if self._compensate else {"states": states}

    def _quantize(self, index: int) -> Mapping[str, Packed]:
        """Layer `index`, which is the next one, packed; the states pass it."""
        assert self._carried is not None
        for matrix in TAP_OF:
            name = f"layers.{index}.{matrix}"
            check_weights(name, np.asarray(self._tensors[f"{name}.weight"].numpy()))
        if self._compensate:
            packed, self._carried = compensating_layer(
                self._decoder.spec, self._tensors, index, self._carried, self._round
            )
        else:
            packed, self._carried = self._plain(index, self._carried)
        self._next = index + 1
        if self._kept is not None:
            # Whether this layer is in the model's file will be known only when the next one is
            # asked for, so the states before it stay till then.
            self._kept.save(_boundary(index + 1), self._carried)
            self._kept.drop(_boundary(index - 1))
        return packed

    def _round(self, name: str, rows: Float32, moments: Moments) -> Packed:
        kept = kept_blocks(self._decoder, name, self._forms[name])
        return kept or quantize_calibrated(rows, self._forms[name], moments, self._rounding)

    def _plain(self, index: int, carried: Arrays) -> tuple[dict[str, Packed], Arrays]:
        spec, at = self._decoder.spec, f"layers.{index}."
        part = tapped_layer_model(spec, self._tensors, index, TAPS)
        weights = {
            matrix: np.asarray(part.weights[f"{at}{matrix}.weight"], np.float32)
            for matrix in TAP_OF
        }
        meters = {tap: MomentsMeter(weights[tap].shape[1]) for tap in TAPS}
        run_layer(part, carried["states"], {tap: meters[tap].add for tap in TAPS}, prepack=False)
        del part
        packed = {}
        for tap in TAPS:
            moments = meters.pop(tap).result()
            for matrix in [matrix for matrix in TAP_OF if TAP_OF[matrix] == tap]:
                packed[at + matrix] = self._round(at + matrix, weights.pop(matrix), moments)
        quantized: PartModel = layer_model(spec, Quantized(self._tensors, packed), index)
        return packed, {"states": run_layer(quantized, carried["states"], prepack=True)}


def _boundary(index: int) -> str:
    """What the states before a layer are kept as."""
    return f"states.{index}"


def format_names(forms: Mapping[str, BlockFormat]) -> str:
    """The formats' names, each once, joined by "+"."""
    return "+".join(sorted({form.name for form in forms.values()}))


def check_weights(matrix: str, rows: Float32) -> None:
    """Refuse NaN and infinities.

    Raises:
        ExportError: with the matrix's stored name.
    """
    try:
        check_finite(rows)
    except ValueError as error:
        raise ExportError(
            f"Weight {matrix}: {error}.", hint="The checkpoint is broken; get it again."
        ) from None
