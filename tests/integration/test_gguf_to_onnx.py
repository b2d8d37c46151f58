"""A quantized GGUF becomes an ONNX model: its blocks are kept, or what rounding them again cost
is told."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.onnx import WeightScheme, read_stored, write_decoder
from edgesdk_export.onnx.stored_weights import matrix_parts
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.weights import read_whole
from edgesdk_quantize.formats import Int4, Int8Symmetric
from edgesdk_quantize.formats.blocks import PackedMatrix, dequantize
from support.onnx_decoding import OnnxDecoding
from support.tiny_models import make_tiny

from edgesdk.errors import ExportError

pytest.importorskip("llama_cpp")
import llama_cpp
from support.tiny_ggufs import write_tiny_gguf

pytestmark = pytest.mark.integration

TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(24)]
KINDS = {name: gguf.GGMLQuantizationType[name] for name in ("Q4_0", "Q8_0", "Q4_1", "Q5_0", "F16")}
# Rows of q and k in another order; fused matrices; a tied embedding; four norms a layer.
FAMILIES = ("llama", "phi3", "qwen2", "gemma3")


def make_gguf(folder, variant, kind, **overrides):
    if variant == "gemma3":
        overrides |= {"query_pre_attn_scalar": 32, "num_hidden_layers": 2}
    if variant == "phi3":
        overrides |= {"sliding_window": None}
    model = make_tiny(variant, folder / "hf", **overrides)
    path = folder / f"{kind}.gguf"
    write_tiny_gguf(model, path, quantized=KINDS[kind])
    return path


def logits_of(folder, spec):
    return OnnxDecoding(folder / "model.onnx", spec, capacity=32).extend(TOKENS)


def stored_matrix(stored, name, columns):
    if f"{name}.codes" in stored:
        data = stored[f"{name}.codes"].numpy()
    else:
        # An embedding of its own is only gathered from.
        rows = stored[f"{name}.rows"].numpy()
        data = rows.reshape(*stored[f"{name}.scales"].numpy().shape, -1)
    zeros = f"{name}.zero_points"
    packed = PackedMatrix(
        data,
        stored[f"{name}.scales"].numpy(),
        stored[zeros].numpy() if zeros in stored else None,
    )
    blocks = packed.scales.shape[1]
    return dequantize(packed, bits=data.shape[2] * 8 * blocks // columns, columns=columns)


def source_matrix(decoder, parts):
    return np.concatenate([read_whole(decoder.weights[f"{part}.weight"]) for part in parts])


def relative_error(values, exact):
    return np.sqrt(np.square(values - exact).sum() / np.square(exact).sum())


@pytest.mark.parametrize("variant", FAMILIES)
@pytest.mark.parametrize(("kind", "scheme"), [("Q4_0", "int4"), ("Q8_0", "int8"), ("Q5_0", "int8")])
def test_the_bundle_has_exactly_the_values_of_the_gguf(kind, scheme, variant, tmp_path):
    decoder = read_decoder(open_checkpoint(make_gguf(tmp_path, variant, kind)))
    (tmp_path / "blocks").mkdir()
    (tmp_path / "floats").mkdir()
    written = write_decoder(decoder, tmp_path / "blocks", WeightScheme.named(scheme))
    stored = read_stored(tmp_path / "blocks" / "model.onnx")
    matrices = matrix_parts(decoder.spec)
    for name, parts in matrices.items():
        exact = source_matrix(decoder, parts)
        assert f"{name}.zero_points" not in stored
        np.testing.assert_array_equal(stored_matrix(stored, name, exact.shape[1]), exact, name)
    assert {entry.relative_error for entry in written.source_blocks} == {0}
    assert sum(entry.tensors for entry in written.source_blocks) == sum(map(len, matrices.values()))

    write_decoder(decoder, tmp_path / "floats", WeightScheme.named("fp32"))
    blocks, floats = (logits_of(tmp_path / which, decoder.spec) for which in ("blocks", "floats"))
    # Inputs are rounded to 8 bits in each product, and nothing else differs.
    assert relative_error(blocks, floats) < 0.06


def test_what_has_minima_is_rounded_again_and_the_loss_is_told(tmp_path):
    decoder = read_decoder(open_checkpoint(make_gguf(tmp_path, "llama", "Q4_1")))
    written = write_decoder(decoder, tmp_path, WeightScheme.named("int4"))
    told = {entry.stored: entry for entry in written.source_blocks}
    assert set(told) == {"int4", "int8-symmetric"}
    assert told["int4"].tensors == 7 * decoder.spec.layers
    assert told["int8-symmetric"].tensors == 2
    stored = read_stored(tmp_path / "model.onnx")
    for fmt, kinds in (("int4", ("qkv", "o", "gate", "up", "down")), ("int8-symmetric", None)):
        error = squares = 0.0
        for name, parts in matrix_parts(decoder.spec).items():
            if (name in ("embed", "head")) if kinds is None else name.endswith(kinds):
                exact = source_matrix(decoder, parts).astype(np.float64)
                error += np.square(stored_matrix(stored, name, exact.shape[1]) - exact).sum()
                squares += np.square(exact).sum()
        assert told[fmt].relative_error == pytest.approx(np.sqrt(error / squares), rel=0.01)
    assert 0.03 < told["int4"].relative_error < 0.09
    assert told["int8-symmetric"].relative_error < 0.01


def llama_quantize(source, target, file_type):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 1
    files = str(source).encode(), str(target).encode()
    assert llama_cpp.llama_model_quantize(*files, params) == 0


def test_a_mix_of_types_is_told_type_by_type(tmp_path):
    """Q4_K_M has Q6_K beside Q4_K in one fused matrix, and falls back to Q5_0 and Q8_0."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 8}
    model = make_tiny("llama", tmp_path / "hf", **sizes)
    write_tiny_gguf(model, tmp_path / "f32.gguf")
    llama_quantize(tmp_path / "f32.gguf", tmp_path / "q.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)
    checkpoint = open_checkpoint(tmp_path / "q.gguf")
    assert {"Q4_K", "Q6_K", "Q5_0", "Q8_0"} < set(checkpoint.dtypes)
    decoder = read_decoder(checkpoint)
    (tmp_path / "blocks").mkdir()
    written = write_decoder(decoder, tmp_path / "blocks", WeightScheme.named("int4"))
    told = {(entry.source, entry.stored): entry for entry in written.source_blocks}
    assert set(told) == {
        ("Q4_K", "int4"),
        ("Q6_K", "int4"),
        ("Q5_0", "int4"),
        ("Q8_0", "int4"),
        ("Q4_K", "int8-symmetric"),
        ("Q6_K", "int8-symmetric"),
    }
    assert all(0 < entry.relative_error < 0.1 for entry in told.values())
    weights = [tensor for tensor in decoder.weights.values() if len(tensor.shape) == 2]
    assert sum(entry.tensors for entry in told.values()) == len(weights)


def test_rows_that_fit_stay_exact_beside_rows_that_do_not(tmp_path):
    """One fused matrix of q, k and v: v is stored in floats, and needs zero-points."""
    exact = read_decoder(open_checkpoint(make_gguf(tmp_path / "a", "llama", "Q4_0")))
    other = read_decoder(open_checkpoint(make_gguf(tmp_path / "b", "llama", "F16")))
    name = "layers.1.v.weight"
    mixed = type(exact)(exact.spec, {**exact.weights, name: other.weights[name]})
    written = write_decoder(mixed, tmp_path, WeightScheme.named("int4"))
    stored = read_stored(tmp_path / "model.onnx")
    matrix = stored_matrix(stored, "layers.1.qkv", 64)
    assert "layers.1.qkv.zero_points" in stored
    assert "layers.0.qkv.zero_points" not in stored
    expected = source_matrix(mixed, ("layers.1.q", "layers.1.k", "layers.1.v"))
    rows = len(expected) - mixed.weights[name].shape[0]
    np.testing.assert_array_equal(matrix[:rows], expected[:rows])
    assert 0.03 < relative_error(matrix[rows:], expected[rows:]) < 0.12
    assert {entry.relative_error for entry in written.source_blocks} == {0}
    assert sum(entry.tensors for entry in written.source_blocks) == 7 * 3 - 1 + 2


@pytest.mark.parametrize(("start", "stop"), [(0, 32), (3, 17), (31, 32)])
def test_blocks_of_reordered_rows_are_those_of_the_values(start, stop, tmp_path):
    decoder = read_decoder(open_checkpoint(make_gguf(tmp_path, "llama", "Q4_0")))
    key, fmt = decoder.weights["layers.1.k.weight"], Int4(block=16)
    kept = key.preserved_format(fmt)
    values = kept.dequantize(key.blocks(kept, start, stop), columns=64)
    np.testing.assert_array_equal(values, key.rows(start, stop))
    assert key.preserved_format(Int8Symmetric(block=64)) is None


def test_a_broken_scale_is_named(tmp_path):
    path = make_gguf(tmp_path, "qwen2", "Q4_0")
    tensor = open_checkpoint(path).tensors["blk.1.ffn_up.weight"]
    raw = bytearray(path.read_bytes())
    at = tensor.region.offset + 5 * tensor.row_bytes + 18
    raw[at : at + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(raw)
    decoder = read_decoder(open_checkpoint(path))
    with pytest.raises(ExportError, match=r"layers\.1\.up\.weight.*\[5, 1\] is nan"):
        write_decoder(decoder, tmp_path, WeightScheme.named("int4"))


def test_the_manifest_says_what_was_kept(tmp_path):
    path = make_gguf(tmp_path, "llama", "Q4_0")
    job = ExportJob(path, tmp_path / "tiny", "tiny", scheme="int4", quality_tokens=128)
    manifest = export(job, SilentProgress()).manifest
    stored = manifest.quantization
    assert stored.method.endswith("; blocks of Q4_0 kept")
    assert [entry.line() for entry in stored.source_blocks] == [
        "Q4_0: 21 kept exactly as int4-symmetric",
        "Q4_0: 2 kept exactly as int8-symmetric",
    ]
    # Only activations are rounded: about .003. Weights rounded again cost .3 here.
    assert manifest.quality.kl_mean < 0.03
