"""Train through a number format: weights are rounded forward, and not backward.

The straight-through estimator (Bengio et al., 2013, arXiv:1308.3432): a weight gets the gradient of
the value that it was rounded to, where it lies within the grid. Scales and offsets get their own
gradients with the codes as they are, which is exact but where a code changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from edgesdk_quantize.formats import trained_grids
from edgesdk_quantize.formats.blocks import BlockFormat, PackedMatrix, UInt8
from edgesdk_quantize.formats.trained_grids import BlockGrid, TrainedFormat
from torch import Tensor, nn
from torch.nn import functional

# Scales and offsets move by this part of a scale where a weight moves by 1: Adam's steps are as
# large for all, and a weight of a language model is a few hundredths.
_SCALE_RATE = 20.0


class NumberGrid(nn.Module):
    """The grid of a matrix [N, K] in a number format, with scales and offsets that are trained.

    Args:
        fmt: the format.
        first: the grid that training begins with.
    """

    zeros: Tensor
    first_scales: Tensor
    first_offsets: Tensor | None
    codes: Tensor | None

    def __init__(self, fmt: TrainedFormat, first: BlockGrid) -> None:
        super().__init__()
        self.fmt = fmt
        self._block = trained_grids.group_size(fmt)
        self._top = trained_grids.max_code(fmt)
        scales = torch.from_numpy(first.scales)
        offsets = None if first.offsets is None else torch.from_numpy(first.offsets)
        self.register_buffer("zeros", torch.from_numpy(first.zeros), persistent=False)
        self.register_buffer("first_scales", scales, persistent=False)
        self.register_buffer("first_offsets", offsets, persistent=False)
        self.register_buffer("codes", None, persistent=False)
        self.scale_moves = nn.Parameter(torch.zeros_like(scales))
        self.offset_moves = None if offsets is None else nn.Parameter(torch.zeros_like(scales))

    def forward(self, weight: Tensor) -> Tensor:
        """The float32 [N, K] that a weight becomes when it is stored."""
        scales, offsets = self._stored()
        columns = weight.shape[1]
        blocks = _to_blocks(weight, self._block)
        if self.codes is None:
            found = _rounded(blocks, scales, offsets, self.zeros, self._top)
        else:
            codes = self.codes.to(scales.dtype) - self.zeros[..., None]
            found = codes * scales[..., None]
            found = found if offsets is None else found + offsets[..., None]
        values: Tensor = found.reshape(len(weight), -1)[:, :columns]
        return values

    def fix_codes(self, weight: Tensor) -> None:
        """Keep the codes that a weight has now, whatever becomes of the grid."""
        self.codes = self._nearest(weight)

    def packed(self, weight: Tensor) -> PackedMatrix | UInt8:
        """The weight as it is stored: a `PackedMatrix`, or ggml's rows."""
        codes = self._nearest(weight) if self.codes is None else self.codes
        grid, numbers = self._moved(), codes.cpu().numpy()
        if isinstance(self.fmt, BlockFormat):
            return trained_grids.pack_blocks(self.fmt, grid, numbers)
        return trained_grids.pack_ggml(self.fmt, grid, numbers)

    def _nearest(self, weight: Tensor) -> Tensor:
        """The nearest codes, uint8 [N, blocks, block]."""
        with torch.no_grad():
            scales, offsets = self._stored()
            blocks = _to_blocks(weight, self._block)
            steps = _codes(blocks, scales, offsets, self.zeros, self._top)
            return (steps + self.zeros[..., None]).to(torch.uint8)

    def _moved(self) -> BlockGrid:
        """The grid with the scales that training has come to."""
        with torch.no_grad():
            scales, offsets = self._trained()
        return BlockGrid(
            scales.cpu().numpy(),
            self.zeros.cpu().numpy(),
            None if offsets is None else offsets.cpu().numpy(),
        )

    def _trained(self) -> tuple[Tensor, Tensor | None]:
        # A scale never turns over: formats with coded scales have positive ones only.
        factors = (1 + _SCALE_RATE * self.scale_moves).clamp(min=0.1)
        scales = self.first_scales * factors
        if self.first_offsets is None or self.offset_moves is None:
            return scales, None
        return scales, self.first_offsets + _SCALE_RATE * self.offset_moves * self.first_scales

    def _stored(self) -> tuple[Tensor, Tensor | None]:
        """Scales and offsets as they would be stored; gradients pass straight through."""
        scales, offsets = self._trained()
        found = trained_grids.stored(self.fmt, self._moved())
        scales = _straight_through(scales, _like(scales, found.scales))
        if offsets is not None:
            assert found.offsets is not None
            offsets = _straight_through(offsets, _like(offsets, found.offsets))
        return scales, offsets


class _StraightThrough(torch.autograd.Function):
    """Another value forward; the gradient of the first one backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


class _Rounded(torch.autograd.Function):
    """Blocks [N, blocks, block] rounded to their grids."""

    @staticmethod
    def forward(
        ctx: Any, blocks: Tensor, scales: Tensor, offsets: Tensor | None, zeros: Tensor, top: int
    ) -> Tensor:
        steps = _codes(blocks, scales, offsets, zeros, top)
        ctx.save_for_backward(blocks, scales, offsets, steps.to(torch.int16))
        return _values(steps, scales, offsets)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        blocks, scales, offsets, steps = ctx.saved_tensors
        steps = steps.to(scales.dtype)
        of_scales = (gradient * steps).sum(-1)
        of_offsets = None if offsets is None else gradient.sum(-1)
        left = _values(steps, scales, offsets).sub_(blocks).abs_()
        # Half a step, and what float32 takes from it.
        inside = left <= 0.5001 * scales.abs()[..., None]
        return gradient * inside, of_scales, of_offsets, None, None


# torch gives them no types.
_straight_through: Callable[[Tensor, Tensor], Tensor] = _StraightThrough.apply
_rounded: Callable[[Tensor, Tensor, Tensor | None, Tensor, int], Tensor] = _Rounded.apply


def _codes(
    blocks: Tensor, scales: Tensor, offsets: Tensor | None, zeros: Tensor, top: int
) -> Tensor:
    """The nearest codes less their zeros."""
    shifted = blocks if offsets is None else blocks - offsets[..., None]
    # ggml stores blocks of one value with a scale of 0.
    divisors = torch.where(scales == 0, torch.ones_like(scales), scales)
    steps = (shifted / divisors[..., None]).round_()
    return torch.clamp(steps, min=-zeros[..., None], max=top - zeros[..., None])


def _values(steps: Tensor, scales: Tensor, offsets: Tensor | None) -> Tensor:
    values = steps * scales[..., None]
    return values if offsets is None else values.add_(offsets[..., None])


def _to_blocks(weight: Tensor, block: int) -> Tensor:
    padding = -weight.shape[1] % block
    padded = functional.pad(weight, (0, padding)) if padding else weight
    return padded.reshape(len(weight), -1, block)


def _like(value: Tensor, array: np.ndarray[Any, np.dtype[np.float32]]) -> Tensor:
    return torch.from_numpy(array).to(value.device)
