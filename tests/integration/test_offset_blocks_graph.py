"""Blocks with offsets in a written model: onnxruntime computes what the format stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.onnx import WeightScheme, write_decoder
from edgesdk_export.quality.stacks import CheckpointStack, WrittenStack
from edgesdk_export.quality.streamed import compare
from edgesdk_export.quality.text import Windows
from edgesdk_export.selftest.running import onnx_logits
from edgesdk_export.weights import Decoder
from edgesdk_quantize.formats import CodedScales, Int4, Int4Offset, Int8Symmetric
from support.tiny_models import VOCAB_SIZE, make_tiny

pytestmark = pytest.mark.integration

OFFSET = WeightScheme("int4", Int4Offset(), CodedScales(Int8Symmetric()), CodedScales(Int4()))
PLAIN = WeightScheme("int4", CodedScales(Int4()), OFFSET.embedding, OFFSET.lookup)
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.fixture(scope="module", params=["qwen2", "llama-biased"])
def decoder(request, tmp_path_factory):
    """A tied one, and one with a head of its own."""
    folder = tmp_path_factory.mktemp(request.param)
    make_tiny(request.param, folder)
    return read_decoder(open_checkpoint(folder))


class Rounded:
    """A matrix as a format gives it back; a `LazyTensor`."""

    def __init__(self, tensor, form):
        values = tensor.rows(0, tensor.shape[0])
        self.values = form.dequantize(form.quantize(values), columns=values.shape[1])
        self.shape, self.dtype = tensor.shape, tensor.dtype

    def rows(self, start, stop):
        return self.values[start:stop]


def rounded(decoder, scheme):
    """The decoder with all its matrices as they will be stored."""

    def form(name):
        if name == "embed.weight":
            return scheme.table(decoder.spec.tied)
        return scheme.embedding if name == "head.weight" else scheme.linear

    matrices = {name for name in decoder.weights if name.split(".")[-2] in MATRICES}
    matrices |= {"embed.weight", "head.weight"} & decoder.weights.keys()
    return Decoder(
        decoder.spec,
        {
            name: Rounded(tensor, form(name))
            if name in matrices and name.endswith(".weight")
            else tensor
            for name, tensor in decoder.weights.items()
        },
    )


def kl(reference, folder):
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE, (4, 32))
    stack = WrittenStack(reference.spec, folder / "model.onnx")
    windows = Windows(ids)
    return compare(CheckpointStack(reference), stack, windows, progress=lambda *_: None).kl.mean()


def test_kernels_compute_what_the_format_stands_for(decoder, tmp_path: Path) -> None:
    write_decoder(decoder, tmp_path, OFFSET)
    lost = kl(decoder, tmp_path)
    # What is left is that kernels round activations to 8 bits.
    assert kl(rounded(decoder, OFFSET), tmp_path) < 0.05 * lost


def test_offsets_lose_less_than_zero_points(decoder, tmp_path: Path) -> None:
    found = []
    for name, scheme in (("offset", OFFSET), ("plain", PLAIN)):
        folder = tmp_path / name
        folder.mkdir()
        write_decoder(decoder, folder, scheme)
        found.append(kl(decoder, folder))
    assert found[0] < found[1]


def test_the_whole_graph_computes_what_its_parts_do(decoder, tmp_path: Path) -> None:
    write_decoder(decoder, tmp_path, OFFSET)
    ids = np.arange(24) * 7 % VOCAB_SIZE
    whole = onnx_logits(tmp_path / "model.onnx", ids)
    in_pieces = onnx_logits(tmp_path / "model.onnx", ids, large=0)
    np.testing.assert_allclose(in_pieces, whole, atol=0.05 * np.abs(whole).max())


def test_an_embedding_that_is_only_looked_up_takes_half_the_bytes(decoder, tmp_path: Path) -> None:
    sizes = {}
    for name, lookup in (("four", CodedScales(Int4())), ("eight", None)):
        (tmp_path / name).mkdir()
        scheme = WeightScheme("int4", Int4Offset(), CodedScales(Int8Symmetric()), lookup)
        written = write_decoder(decoder, tmp_path / name, scheme)
        sizes[name] = written.bits_per_weight
    if decoder.spec.tied:
        assert sizes["four"] == sizes["eight"]
    else:
        share = decoder.spec.vocab_size * decoder.spec.hidden_size / decoder.spec.parameters
        assert sizes["four"] < sizes["eight"] - 3 * share
