"""Blocks with offsets in a written model: onnxruntime computes what the format stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgesdk_export.onnx import WeightScheme, write_decoder
from edgesdk_export.weights import Decoder
from edgesdk_quantize.formats import CodedScales, Int4, Int4Offset, Int8Symmetric
from support.written_blocks import assert_whole_equals_parts, divergence

pytestmark = pytest.mark.integration

OFFSET = WeightScheme("int4", Int4Offset(), CodedScales(Int8Symmetric()), CodedScales(Int4()))
PLAIN = WeightScheme("int4", CodedScales(Int4()), OFFSET.embedding, OFFSET.lookup)
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


class Rounded:
    """A matrix as a format gives it back; a `LazyTensor`."""

    def __init__(self, tensor, fmt):
        values = tensor.rows(0, tensor.shape[0])
        self.values = fmt.dequantize(fmt.quantize(values), columns=values.shape[1])
        self.shape, self.dtype = tensor.shape, tensor.dtype

    def rows(self, start, stop):
        return self.values[start:stop]


def rounded(decoder, scheme):
    """The decoder with all its matrices as they will be stored."""

    def fmt(name):
        if name == "embed.weight":
            return scheme.embedding_for(decoder.spec.tied, decoder.spec.hidden_size)
        return scheme.embedding if name == "head.weight" else scheme.linear

    matrices = {name for name in decoder.weights if name.split(".")[-2] in MATRICES}
    matrices |= {"embed.weight", "head.weight"} & decoder.weights.keys()
    return Decoder(
        decoder.spec,
        {
            name: Rounded(tensor, fmt(name))
            if name in matrices and name.endswith(".weight")
            else tensor
            for name, tensor in decoder.weights.items()
        },
    )


def test_kernels_compute_what_the_format_stands_for(tiny_decoder, tmp_path: Path) -> None:
    write_decoder(tiny_decoder, tmp_path, OFFSET)
    lost = divergence(tiny_decoder, tmp_path)
    # What is left is that kernels round activations to 8 bits.
    assert divergence(rounded(tiny_decoder, OFFSET), tmp_path) < 0.05 * lost


def test_offsets_lose_less_than_zero_points(tiny_decoder, tmp_path: Path) -> None:
    found = []
    for name, scheme in (("offset", OFFSET), ("plain", PLAIN)):
        folder = tmp_path / name
        folder.mkdir()
        write_decoder(tiny_decoder, folder, scheme)
        found.append(divergence(tiny_decoder, folder))
    assert found[0] < found[1]


def test_the_whole_graph_computes_what_its_parts_do(tiny_decoder, tmp_path: Path) -> None:
    write_decoder(tiny_decoder, tmp_path, OFFSET)
    assert_whole_equals_parts(tmp_path)


def test_an_embedding_that_is_only_looked_up_takes_half_the_bytes(
    tiny_decoder, tmp_path: Path
) -> None:
    sizes = {}
    for name, lookup in (("four", CodedScales(Int4())), ("eight", None)):
        (tmp_path / name).mkdir()
        scheme = WeightScheme("int4", Int4Offset(), CodedScales(Int8Symmetric()), lookup)
        written = write_decoder(tiny_decoder, tmp_path / name, scheme)
        sizes[name] = written.bits_per_weight
    spec = tiny_decoder.spec
    if spec.tied:
        assert sizes["four"] == sizes["eight"]
    else:
        share = spec.vocab_size * spec.hidden_size / spec.parameters
        assert sizes["four"] < sizes["eight"] - 3 * share
