"""Calibration on tiny models: against a transformers forward hook, and against doing nothing."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from edgesdk_export.calibration.channel_scales import (
    LayerScales,
    apply_awq,
    off_grid,
    rescale_decoder,
)
from edgesdk_export.calibration.importance import (
    ChannelSquares,
    ImportanceMatrix,
    collect_importance,
    gguf_names,
    read_importance,
    write_importance,
)
from edgesdk_export.calibration.quantizers import SequentialQuantizer, WeightedQuantizer
from edgesdk_export.calibration.sensitivity import measure_costs
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.onnx import FloatTensors, WeightScheme, write_decoder
from edgesdk_export.onnx.stored_weights import matrix_parts
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.quality.layerwise import compare
from edgesdk_export.quality.layerwise_models import LayerwiseCheckpoint, LayerwiseOnnxModel
from edgesdk_export.weights import Decoder, read_whole
from edgesdk_quantize.formats import Int4, Int8
from edgesdk_quantize.formats.blocks import dequantize
from edgesdk_quantize.methods.gptq import RoundingOptions
from gguf import GGUFReader
from support.tiny_models import VOCAB_SIZE, make_tiny

from edgesdk.errors import CheckpointError, ExportError

pytestmark = pytest.mark.integration

VARIANTS = ["llama-biased", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]
HOOKED = {
    "q_proj": "qkv",
    "qkv_proj": "qkv",
    "o_proj": "o",
    "gate_proj": "gate",
    "gate_up_proj": "gate",
    "down_proj": "down",
}


def windows(count=3, length=24, seed=0):
    return Windows(np.random.default_rng(seed).integers(0, VOCAB_SIZE, (count, length)))


def tiny(variant, folder):
    model = make_tiny(variant, folder)
    return model, read_decoder(open_checkpoint(folder))


def hidden_after(decoder, text):
    stack = LayerwiseCheckpoint(decoder)
    embed = stack.embed()
    states = np.concatenate([embed(row[None]) for row in text.ids])
    for index in range(stack.layers):
        block = stack.layer(index)
        states = np.concatenate([block(state[None]) for state in states])
    return states


@pytest.mark.parametrize("variant", VARIANTS)
def test_importance_is_what_a_forward_hook_sees(variant: str, tmp_path: Path) -> None:
    model, decoder = tiny(variant, tmp_path)
    text, seen = windows(), defaultdict(float)
    for name, module in model.named_modules():
        tap = HOOKED.get(name.rpartition(".")[2])
        if tap is not None:
            layer = name.split("layers.")[1].split(".")[0]

            def hook(_, inputs, __, key=f"layers.{layer}.{tap}"):
                seen[key] = seen[key] + inputs[0].square().sum(dim=(0, 1)).numpy()

            module.register_forward_hook(hook)
    with torch.no_grad():
        model(torch.from_numpy(text.ids))
    found = collect_importance(decoder, text, text_name="noise")
    names = gguf_names(decoder.spec)
    assert names.keys() == seen.keys()
    for tap, sums in seen.items():
        for name in names[tap]:
            entry = found.entries[name]
            assert entry.tokens == text.ids.size
            np.testing.assert_allclose(entry.sums, sums, rtol=2e-3, atol=1e-4 * sums.max())
    assert set(found.entries) == {name for group in names.values() for name in group}


def test_importance_file_has_the_layout_of_llama_cpp(tmp_path: Path) -> None:
    entry = ChannelSquares(np.arange(8, dtype=np.float32), 1024)
    written = ImportanceMatrix({"blk.0.attn_q.weight": entry}, ("one.txt",), 512)
    path = tmp_path / "imatrix.gguf"
    write_importance(written, path)
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "imatrix"
    assert fields["imatrix.datasets"] == ["one.txt"]
    assert (fields["imatrix.chunk_count"], fields["imatrix.chunk_size"]) == (2, 512)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert set(tensors) == {"blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts"}
    # ggml's order: the fastest dimension first.
    assert list(tensors["blk.0.attn_q.weight.in_sum2"].shape) == [8, 1]
    assert list(tensors["blk.0.attn_q.weight.counts"].shape) == [1, 1]
    assert tensors["blk.0.attn_q.weight.counts"].data.item() == 1024
    assert list(tmp_path.iterdir()) == [path]


def test_importance_goes_through_a_file_unchanged(tmp_path: Path) -> None:
    _, decoder = tiny("llama", tmp_path)
    found = collect_importance(decoder, windows(), text_name="noise")
    path = tmp_path / "imatrix.gguf"
    write_importance(found, path)
    again = read_importance(path)
    assert (again.datasets, again.chunk_tokens, again.chunks) == (("noise",), 24, 3)
    assert again.entries.keys() == found.entries.keys()
    for name, entry in found.entries.items():
        np.testing.assert_array_equal(again.entries[name].sums, entry.sums)
        assert again.entries[name].tokens == entry.tokens


def test_importance_of_another_model_is_refused(tmp_path: Path) -> None:
    _, decoder = tiny("llama", tmp_path)
    with pytest.raises(ExportError, match=r"none for blk\.0\.attn_q\.weight; the model has 64"):
        WeightedQuantizer(decoder, ImportanceMatrix({}, (), 8), {})


@pytest.mark.parametrize("sums", [[np.nan, 1.0], [-1.0, 1.0]])
def test_broken_importance_is_refused(sums: list[float], tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    entry = ChannelSquares(np.array(sums, np.float32), 4)
    write_importance(ImportanceMatrix({"blk.0.attn_q.weight": entry}, ("x",), 4), path)
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_q\.weight"):
        read_importance(path)


def test_a_model_is_no_importance_matrix(smollm2_gguf: Path) -> None:
    with pytest.raises(CheckpointError, match="no importance matrix"):
        read_importance(smollm2_gguf)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rescaling_leaves_the_function(variant: str, tmp_path: Path) -> None:
    _, decoder = tiny(variant, tmp_path)
    moved = off_grid(decoder, seed=3, sigma=0.3)
    expected, found = hidden_after(decoder, windows()), hidden_after(moved, windows())
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    name = "layers.1.down.weight"
    assert not np.allclose(read_whole(moved.weights[name]), read_whole(decoder.weights[name]))


def test_rescaled_rows_are_those_of_the_whole(tmp_path: Path) -> None:
    _, decoder = tiny("llama-biased", tmp_path)
    moved = off_grid(decoder, seed=3)
    for name in ("layers.0.v.weight", "layers.0.v.bias", "layers.0.o.weight"):
        whole = read_whole(moved.weights[name])
        np.testing.assert_array_equal(moved.weights[name].rows(3, 9), whole[3:9])


def all_in(decoder, fmt):
    return {name: fmt for name in matrix_parts(decoder.spec) if name.startswith("layers.")}


@pytest.mark.parametrize("variant", VARIANTS)
def test_activation_aware_scales_leave_the_function(variant: str, tmp_path: Path) -> None:
    _, decoder = tiny(variant, tmp_path)
    moved = apply_awq(decoder, windows(), all_in(decoder, Int4()))
    expected, found = hidden_after(decoder, windows(seed=4)), hidden_after(moved, windows(seed=4))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    changed = [
        not np.allclose(read_whole(moved.weights[name]), read_whole(decoder.weights[name]))
        for name in decoder.weights
    ]
    assert any(changed)


def int4_kl(decoder, folder, text, quantizer):
    folder.mkdir()
    written = write_decoder(decoder, folder, WeightScheme.named("int4"), quantizer=quantizer)
    reference = LayerwiseCheckpoint(decoder)
    candidate = LayerwiseOnnxModel(decoder.spec, folder / written.model_file)
    return compare(reference, candidate, text, progress=lambda *_: None).kl.mean()


@pytest.mark.parametrize("variant", ["llama-biased", "qwen3", "gemma2"])
def test_calibrated_bundles_are_closer_to_the_checkpoint(variant: str, tmp_path: Path) -> None:
    _, decoder = tiny(variant, tmp_path / "model")
    text, held_out = windows(24, seed=1), windows(8, seed=2)
    fmt = Int4()
    importance = collect_importance(decoder, text, text_name="noise")
    plain = int4_kl(decoder, tmp_path / "plain", held_out, None)
    weighted = WeightedQuantizer(decoder, importance, all_in(decoder, fmt))
    gptq = SequentialQuantizer(decoder, text, all_in(decoder, fmt), RoundingOptions(sweeps=1))
    assert int4_kl(decoder, tmp_path / "weighted", held_out, weighted) < 1.1 * plain
    assert int4_kl(decoder, tmp_path / "gptq", held_out, gptq) < plain


def test_formats_may_differ_from_matrix_to_matrix(tmp_path: Path) -> None:
    _, decoder = tiny("llama", tmp_path / "model")
    matrix_formats = {"qkv": Int8(block=64), "down": Int4(block=16)}
    by_matrix = {
        name: matrix_formats.get(name.split(".")[-1], fmt)
        for name, fmt in all_in(decoder, Int4()).items()
    }
    quantizer = SequentialQuantizer(decoder, windows(8), by_matrix, RoundingOptions())
    assert quantizer.formats == "int4+int8"
    folder = tmp_path / "bundle"
    folder.mkdir()
    written = write_decoder(decoder, folder, WeightScheme.named("int4"), quantizer=quantizer)
    graph = ir.load(folder / written.model_file).graph
    kinds = {
        node.name: (node.attributes["bits"].as_int(), node.attributes["block_size"].as_int())
        for node in graph
        if node.op_type == "MatMulNBits"
    }
    assert kinds["layers.1.qkv/matmul"] == (8, 64)
    assert kinds["layers.1.down/matmul"] == (4, 16)
    assert kinds["layers.1.o/matmul"] == (4, 32)


def test_quantized_matrices_are_near_their_weights(tmp_path: Path) -> None:
    _, decoder = tiny("gemma2", tmp_path)
    quantizer = SequentialQuantizer(decoder, windows(), all_in(decoder, Int8()), RoundingOptions())
    tensors = FloatTensors(decoder)
    for index in range(decoder.spec.layers):
        packed = quantizer.layer(index)
        names = [name for name in matrix_parts(decoder.spec) if name.startswith(f"layers.{index}.")]
        assert sorted(packed) == sorted(names)
        for name, matrix in packed.items():
            weights = tensors[f"{name}.weight"].numpy()
            found = dequantize(matrix, bits=8, columns=weights.shape[1])
            # Single weights move to make up for others; most stay where they are.
            assert np.abs(found - weights).mean() < 0.003


def test_a_weight_that_is_no_number_is_named(tmp_path: Path) -> None:
    _, decoder = tiny("llama", tmp_path)
    spec = decoder.spec
    ones = {
        "attention": np.ones(spec.hidden_size, np.float32),
        "values": np.ones(spec.kv_heads * spec.head_size, np.float32),
        "mlp": np.ones(spec.hidden_size, np.float32),
    }
    inner = np.ones(spec.intermediate_size, np.float32)
    inner[5] = np.nan
    broken = rescale_decoder(decoder, [LayerScales(**ones, inner=inner)] * spec.layers)
    quantizer = SequentialQuantizer(broken, windows(), all_in(decoder, Int4()), RoundingOptions())
    with pytest.raises(ExportError, match=r"layers\.0\.(up|down)"):
        quantizer.layer(0)


def quantized_alone(decoder: Decoder, name: str) -> Decoder:
    weights = dict(decoder.weights)
    rows = read_whole(weights[name])
    found = dequantize(Int4().quantize(rows), bits=4, columns=rows.shape[1])
    weights[name] = ArrayTensor(found)
    return Decoder(decoder.spec, weights)


class ArrayTensor:
    """A `LazyTensor` in memory."""

    dtype = "F32"

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape = values.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.values[start:stop]


def test_costs_rank_matrices_as_their_true_divergence_does(tmp_path: Path) -> None:
    _, decoder = tiny("llama", tmp_path)
    text = windows(8)
    costs = measure_costs(decoder, text, (Int4(), Int4(block=16), Int8()))
    assert sorted(costs) == sorted(
        f"layers.{i}.{m}" for i in range(3) for m in ("qkv", "o", "gate", "up", "down")
    )
    for cost in costs.values():
        coarse, finer, finest = cost.divergence
        assert coarse > finer > 10 * finest > 0
    true = {}
    for name in costs:
        if name.endswith("qkv"):
            continue
        other = quantized_alone(decoder, f"{name}.weight")
        found = compare(
            LayerwiseCheckpoint(decoder), LayerwiseCheckpoint(other), text, progress=lambda *_: None
        )
        true[name] = found.kl.mean()
    measured = {name: costs[name].divergence[0] for name in true}
    ratios = np.array([measured[name] / true[name] for name in true])
    assert np.all((ratios > 0.25) & (ratios < 4)), dict(zip(true, ratios, strict=True))
