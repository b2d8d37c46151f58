"""Number formats against onnxruntime's own kernels, and their error bounds."""

from __future__ import annotations

import gguf
import numpy as np
import onnx
import onnxruntime
import pytest
from edgesdk_quantize.formats import CodedScales, Int4, Int4Symmetric, Int8, Int8Symmetric
from edgesdk_quantize.formats.blocks import pack, unpack
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

FORMATS = [Int4(), Int4Symmetric(), Int8(), Int8Symmetric(), Int4(block=16), Int8(block=64)]
names = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: f"{fmt.name}-{fmt.block}")

# Blocks of smaller magnitudes become zeros.
NOTHING = 1e-28

finite = st.floats(-1e6, 1e6, width=32)
matrices = st.integers(1, 3).flatmap(
    lambda rows: st.integers(1, 70).flatmap(
        lambda columns: arrays(np.float32, (rows, columns), elements=finite)
    )
)


def normal(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_t(5, (rows, columns)).astype(np.float32)


def restored(fmt, weights):
    return fmt.dequantize(fmt.quantize(weights), columns=weights.shape[1])


def run_node(node, weights, feed_name, feed, out_shape):
    """Run one contrib node whose other inputs are initializers."""
    kind = helper.np_dtype_to_tensor_dtype(feed.dtype)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(feed_name, kind, feed.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {feed_name: feed})[0]


@pytest.mark.parametrize("accuracy_level", [1, 4], ids=["float-inputs", "8-bit-inputs"])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("kind", [Int4, Int4Symmetric, Int8, Int8Symmetric])
@pytest.mark.parametrize(("rows", "columns"), [(5, 256), (8, 96), (3, 72), (7, 33)])
def test_matmul_kernel_multiplies_by_the_dequantized_matrix(
    kind, block, rows, columns, accuracy_level
):
    fmt, weights = kind(block=block), normal(rows, columns)
    # Whole numbers, 127 among them in every block: rounding inputs to 8 bits changes nothing.
    x = np.random.default_rng(1).integers(-127, 128, (4, columns)).astype(np.float32)
    x[:, ::16] = 127
    packed = fmt.quantize(weights)
    assert packed.data.shape == (rows, -(-columns // block), block * fmt.bits // 8)
    assert packed.scales.shape == packed.data.shape[:2]
    stored = {"b": packed.data, "s": packed.scales}
    if fmt.has_zero_points:
        stored["z"] = packed.zero_points
    node = helper.make_node(
        "MatMulNBits",
        ["x", *stored],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=fmt.bits,
        block_size=fmt.block,
        accuracy_level=accuracy_level,
    )
    y = run_node(node, stored, "x", x, (4, rows))
    exact = x @ restored(fmt, weights).T
    np.testing.assert_allclose(y, exact, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize(
    "fmt", [Int8(), Int8Symmetric(), Int8(block=16)], ids=["asymmetric", "symmetric", "block 16"]
)
def test_gather_kernel_returns_dequantized_rows(fmt):
    weights = normal(40, 96)
    packed = fmt.quantize(weights)
    node = helper.make_node(
        "GatherBlockQuantized",
        ["d", "ids", "s", *(["z"] if fmt.has_zero_points else [])],
        ["y"],
        domain="com.microsoft",
        bits=8,
        block_size=fmt.block,
        gather_axis=0,
        quantize_axis=1,
    )
    stored = {"d": packed.data.reshape(40, 96), "s": packed.scales}
    if fmt.has_zero_points:
        stored["z"] = packed.zero_points
    ids = np.array([[3, 39], [0, 3]])
    y = run_node(node, stored, "ids", ids, (2, 2, 96))
    np.testing.assert_array_equal(y, restored(fmt, weights)[ids])


@names
@given(weights=matrices)
@settings(max_examples=60, deadline=None)
def test_every_weight_comes_back_within_a_step_of_its_block(fmt, weights):
    back = restored(fmt, weights)
    padding = -weights.shape[1] % fmt.block
    blocks = np.pad(weights, ((0, 0), (0, padding))).reshape(len(weights), -1, fmt.block)
    errors = np.pad(back - weights, ((0, 0), (0, padding))).reshape(blocks.shape)
    spans = np.maximum(blocks.max(-1), 0) - np.minimum(blocks.min(-1), 0)
    if isinstance(fmt, Int8):
        # Half a step, and half a step more where rounding the zero-point clips an end.
        bound = spans / 255
    elif isinstance(fmt, Int8Symmetric):
        bound = np.abs(blocks).max(-1) / 254
    else:
        # Least squares may clip an outlier, but no more than plain rounding's whole error.
        step = spans / 15 if fmt.has_zero_points else np.abs(blocks).max(-1) / 7
        bound = step * np.sqrt(fmt.block) * 0.5
    error = np.sqrt((errors.astype(np.float64) ** 2).sum(-1)) if fmt.bits == 4 else errors
    limit = bound if fmt.bits == 4 else bound[..., None]
    assert (np.abs(error) <= limit * 1.001 + 1e-6 * spans.max() + NOTHING).all()


@pytest.mark.parametrize("fmt", [Int4(), Int4Symmetric()], ids=lambda fmt: fmt.name)
@given(weights=arrays(np.float32, (4, 64), elements=finite))
@settings(max_examples=60, deadline=None)
def test_search_is_never_worse_than_rounding_to_nearest(fmt, weights):
    blocks = weights.reshape(4, 2, 32).astype(np.float64)
    errors = ((restored(fmt, weights).reshape(blocks.shape) - blocks) ** 2).sum(-1)
    if fmt.has_zero_points:
        low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
        step = (high - low) / 15
    else:
        low, step = None, np.abs(blocks).max(-1) / 7
    step = np.where(step > 0, step, 1)[..., None]
    zero = 8 if low is None else np.rint(-low[..., None] / step)
    codes = np.clip(np.rint(blocks / step) + zero, 0, 15)
    plain = (((codes - zero) * step - blocks) ** 2).sum(-1)
    assert (errors <= plain * (1 + 1e-4) + 1e-9 * (blocks**2).sum(-1) + NOTHING**2 * 32).all()


def test_search_beats_rounding_to_nearest_on_bell_shaped_weights():
    weights = normal(256, 512)
    blocks = weights.reshape(256, -1, 32)
    low, high = blocks.min(-1, keepdims=True), blocks.max(-1, keepdims=True)
    step = (high - low) / 15
    zero = np.rint(-low / step)
    plain = (np.clip(np.rint(blocks / step) + zero, 0, 15) - zero) * step - blocks
    searched = restored(Int4(), weights) - weights
    assert np.mean(searched**2) < 0.94 * np.mean(plain**2)


@names
@pytest.mark.parametrize("magnitude", [1e-42, 1e-20, 1e20, 3e38])
def test_extreme_magnitudes(fmt, magnitude):
    with np.errstate(all="raise", under="ignore"):
        weights = np.clip(normal(2, 64), -1, 1) * np.float32(magnitude)
        back = restored(fmt, weights.astype(np.float32))
    assert np.isfinite(back).all()
    if magnitude > 1e-30:
        worst = 0.02 if fmt.bits == 8 else 0.2
        assert np.abs(back / magnitude - weights / magnitude).max() < worst


@names
def test_zeros_stay_zeros(fmt):
    np.testing.assert_array_equal(restored(fmt, np.zeros((2, 48), np.float32)), 0)


@names
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_with_its_place(fmt, bad):
    weights = normal(3, 40)
    weights[2, 17] = bad
    with pytest.raises(ValueError, match=r"\[2, 17\] is -?(nan|inf)"):
        fmt.quantize(weights)


@names
def test_rows_do_not_depend_on_their_neighbours(fmt):
    weights = normal(300, 320)
    whole = fmt.quantize(weights)
    alone = fmt.quantize(weights[250:251])
    np.testing.assert_array_equal(whole.data[250:251], alone.data)
    np.testing.assert_array_equal(whole.scales[250:251], alone.scales)


@given(
    codes=arrays(
        np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.integers(0, 15)
    )
)
def test_unpack_undoes_pack(codes):
    np.testing.assert_array_equal(unpack(pack(codes, 4), 4)[:, : codes.shape[1]], codes)


def test_weights_that_ggml_stored_as_q8_0_are_kept_exactly():
    weights = normal(16, 128)
    stored = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    given = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_allclose(restored(Int8Symmetric(), given), given, rtol=1e-6)


@pytest.mark.parametrize(
    ("columns", "fitting", "dividing"),
    [(64, 64, 64), (96, 128, 32), (65, 128, None), (576, 128, 64), (9, 16, None), (8960, 128, 128)],
)
@pytest.mark.parametrize("fmt", [Int4(128), CodedScales(Int4(128))], ids=["float", "coded"])
def test_blocks_that_are_too_wide_for_a_matrix(fmt, columns, fitting, dividing):
    assert fmt.for_columns(columns).block == fitting
    assert fmt.for_columns(columns).has_coded_scales == fmt.has_coded_scales
    divided = fmt.dividing(columns)
    assert (divided and divided.block) == dividing
