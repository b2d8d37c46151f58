"""Blocks that a checkpoint has already, in place of a second rounding: calibration cannot better
what loses nothing."""

from __future__ import annotations

from collections.abc import Mapping

from edgesdk_quantize.formats import BlockFormat, Packed
from edgesdk_quantize.formats.blocks import check_finite, stacked

from edgesdk.errors import ExportError
from edgesdk_export.onnx.stored import matrix_parts
from edgesdk_export.spec import DecoderSpec
from edgesdk_export.weights import BlockTensor, Decoder


def kept_matrices(decoder: Decoder, forms: Mapping[str, BlockFormat]) -> frozenset[str]:
    """Which stored matrices ("layers.3.qkv") of those in `forms` can be had as they are."""
    return frozenset(name for name, form in forms.items() if _kept_forms(decoder, name, form))


def kept_blocks(decoder: Decoder, matrix: str, form: BlockFormat) -> Packed | None:
    """A stored matrix in the checkpoint's own blocks; None where they do not fit `form`.

    Raises:
        ExportError: a scale is NaN or infinite.
    """
    pieces = []
    for name, kept in _kept_forms(decoder, matrix, form).items():
        tensor = decoder.weights[name]
        assert isinstance(tensor, BlockTensor)
        piece = tensor.blocks(kept, 0, tensor.shape[0])
        try:
            check_finite(piece.scales)
        except ValueError as error:
            raise ExportError(
                f"Weight {name}: scales: {error}.", hint="The checkpoint is broken; get it again."
            ) from None
        pieces.append(piece)
    if not pieces:
        return None
    return stacked(pieces, form.bits)


def _kept_forms(decoder: Decoder, matrix: str, form: BlockFormat) -> dict[str, BlockFormat]:
    """The kept format of each weight of a stored matrix; empty where one cannot be kept."""
    found = {}
    for name in _weights(decoder.spec, matrix):
        tensor = decoder.weights[name]
        kept = tensor.kept_form(form) if isinstance(tensor, BlockTensor) else None
        if kept is None:
            return {}
        found[name] = kept
    return found


def _weights(spec: DecoderSpec, matrix: str) -> tuple[str, ...]:
    return tuple(f"{part}.weight" for part in matrix_parts(spec)[matrix])
