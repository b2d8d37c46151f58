"""QDQ formats against onnxruntime's QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from edgesdk_quantize.formats.qdq import A8W8, A16W4, A16W8, ActivationGrid, Qdq
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper

FORMATS = [A8W8, A16W8, A16W4, Qdq("a16w4", 16, 4, block=32), Qdq("a16w8", 16, 8, block=16)]
names = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: f"{fmt.name}-{fmt.block}")
finite = st.floats(-1e6, 1e6, width=32)


def normal(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_t(5, (rows, columns)).astype(np.float32)


def run(nodes, constants, feed, out_shape):
    graph = helper.make_graph(
        nodes,
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, feed.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": feed})[0]


def raw_tensor(name, kind, array_shape, raw):
    return helper.make_tensor(name, kind, array_shape, raw, raw=True)


@names
@pytest.mark.parametrize("shape", [(6, 64), (5, 72), (3, 33)])
def test_weights_are_what_dequantize_linear_makes_of_the_stored_bytes(fmt, shape):
    packed = fmt.quantize(normal(*shape))
    kind = TensorProto.INT8 if fmt.weight_bits == 8 else TensorProto.INT4
    scale = raw_tensor("s", TensorProto.FLOAT, packed.scales.shape, packed.scales.tobytes())
    codes = raw_tensor("c", kind, shape, fmt.stored(packed).tobytes())
    where = {"axis": 1, "block_size": fmt.block} if fmt.block else {"axis": 0}
    nodes = [
        helper.make_node("DequantizeLinear", ["c", "s"], ["w"], **where),
        helper.make_node("Add", ["w", "x"], ["y"]),
    ]
    y = run(nodes, [codes, scale], np.zeros(shape, np.float32), shape)
    np.testing.assert_array_equal(y, fmt.dequantize(packed))


@pytest.mark.parametrize("bits", [8, 16])
@given(
    values=arrays(np.float32, st.integers(1, 40), elements=finite),
    bounds=st.tuples(finite, finite).map(sorted),
)
@settings(max_examples=40, deadline=None)
def test_activations_are_rounded_as_the_kernels_round(bits, values, bounds):
    grid = ActivationGrid.covering(*bounds, bits)
    kind = TensorProto.UINT8 if bits == 8 else TensorProto.UINT16
    constants = [
        raw_tensor("s", TensorProto.FLOAT, (), np.float32(grid.scale).tobytes()),
        raw_tensor("z", kind, (), grid.dtype.type(grid.zero_point).tobytes()),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    y = run(nodes, constants, values, values.shape)
    np.testing.assert_array_equal(y, grid.dequantize(grid.quantize(values)))


@given(bounds=st.tuples(finite, finite).map(sorted), bits=st.sampled_from([8, 16]))
def test_a_grid_covers_its_range_and_has_a_zero(bounds, bits):
    low, high = bounds
    grid = ActivationGrid.covering(low, high, bits)
    values = np.array([low, high, 0], np.float32)
    back = grid.dequantize(grid.quantize(values))
    # Half a step, and half a step more where rounding the zero-point clips an end.
    assert (np.abs(back - values) <= grid.scale * 1.01).all() or max(abs(low), abs(high)) < 1e-24
    assert back[2] == 0


@pytest.mark.parametrize("bounds", [(1.0, -1.0), (np.nan, 1.0), (0.0, np.inf)])
def test_ranges_that_are_none_are_refused(bounds):
    with pytest.raises(ValueError, match="no range"):
        A16W8.activation(*bounds)


@names
@given(weights=arrays(np.float32, (2, 64), elements=finite))
@settings(max_examples=40, deadline=None)
def test_no_worse_than_rounding_to_nearest(fmt, weights):
    packed = fmt.quantize(weights)
    largest = 2 ** (fmt.weight_bits - 1) - 1
    assert (packed.scales > 0).all()
    assert packed.codes.min() >= (-8 if fmt.weight_bits == 4 else -127)
    assert packed.codes.max() <= largest
    groups = weights.reshape(2, -1, fmt.block or 64).astype(np.float64)
    step = np.abs(groups).max(-1, keepdims=True) / largest
    step[step == 0] = 1
    plain = ((np.rint(groups / step) * step - groups) ** 2).sum(-1)
    found = ((fmt.dequantize(packed).reshape(groups.shape) - groups) ** 2).sum(-1)
    assert (found <= plain * (1 + 1e-4) + 1e-9 * (groups**2).sum(-1) + 1e-50).all()


def test_searching_the_scale_of_a_long_row_pays():
    weights = normal(64, 2048)
    step = np.abs(weights).max(-1, keepdims=True) / 7
    plain = np.rint(weights / step) * step - weights
    searched = A16W4.dequantize(A16W4.quantize(weights)) - weights
    assert np.mean(searched**2) < 0.6 * np.mean(plain**2)


@names
def test_what_is_no_number_is_refused_with_its_place(fmt):
    weights = normal(3, 40)
    weights[2, 17] = np.nan
    with pytest.raises(ValueError, match=r"\[2, 17\] is nan"):
        fmt.quantize(weights)


@names
def test_rows_do_not_depend_on_their_neighbours(fmt):
    weights = normal(300, 1024)
    whole, alone = fmt.quantize(weights), fmt.quantize(weights[290:291])
    np.testing.assert_array_equal(whole.codes[290:291], alone.codes)
    np.testing.assert_array_equal(whole.scales[290:291], alone.scales)


@names
@pytest.mark.parametrize("magnitude", [0.0, 1e-42, 1e-20, 1e20, 3e38])
def test_extreme_magnitudes(fmt, magnitude):
    with np.errstate(all="raise", under="ignore"):
        weights = (np.clip(normal(2, 64), -1, 1) * np.float32(magnitude)).astype(np.float32)
        back = fmt.dequantize(fmt.quantize(weights))
    assert np.isfinite(back).all()
    if magnitude > 1e-30:
        assert np.abs(back - weights).max() <= 0.2 * magnitude
