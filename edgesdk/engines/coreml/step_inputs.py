"""Makes what a function of a Core ML package takes for the next tokens of a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgesdk.bundle import coreml_io
from edgesdk.bundle.graph_io import ropes
from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.engines.npu.rope_rows import RopeRows

Inputs = dict[str, npt.NDArray[np.generic]]


class StepInputs:
    """The inputs of one package, see `edgesdk.bundle.coreml_io`.

    Args:
        shape: the sizes of its functions.
    """

    def __init__(self, spec: DecoderSpec, shape: StaticShape) -> None:
        self._spec = spec
        self._shape = shape
        self._rope_rows = RopeRows(spec, shape.dtype)

    def of(self, ids: Sequence[int], start: int, total: int) -> tuple[str, Inputs]:
        """The function to call for the tokens `ids` from position `start` on, and its inputs.

        Args:
            ids: `prefill_tokens` of them at most.
            total: tokens of the whole text, by which "longrope" chooses its factors.
        """
        single = len(ids) == 1
        size = 1 if single else self._shape.prefill_tokens
        padded = np.zeros((1, size), np.int32)
        padded[0, : len(ids)] = ids
        inputs: Inputs = {
            coreml_io.INPUT_IDS: padded,
            coreml_io.POSITION: np.array([start], np.int32),
        }
        for window, name in coreml_io.mask_names(self._spec).items():
            inputs[name] = self._mask(start, size, window)
        for rope in ropes(self._spec):
            rows = self._rope_rows.rows(rope, start, start + len(ids), total=total)
            for name, table in zip(coreml_io.rope_names(rope), rows, strict=True):
                whole = np.zeros((1, 1, size, self._spec.head_size), self._shape.dtype)
                whole[0, 0, : len(ids)] = table
                inputs[name] = whole
        return coreml_io.DECODE if single else coreml_io.PREFILL, inputs

    def _mask(self, start: int, size: int, window: int | None) -> npt.NDArray[np.generic]:
        own = np.arange(start, start + size)[:, None]
        others = np.arange(coreml_io.cache_room(self._shape))[None]
        seen = others <= own
        if window is not None:
            seen &= others > own - window
        mask = np.where(seen, 0, self._shape.mask_value)
        return mask.astype(self._shape.dtype)[None, None]
