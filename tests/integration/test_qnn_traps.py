"""What Qualcomm's compiler silently does wrong or leaves to the CPU, and that our graphs avoid it.

Each trap was found in onnxruntime-qnn 2.7.0, and is shown on its simulator. Beside it stands what
our exporter or engine does instead. Where a later version mends one, its test fails: then the
rewrite may go.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.npu.build import GRAPH_FILES, check_prefill
from edgesdk_export.npu.static_scheme import static_scheme
from edgesdk_export.onnx import WeightScheme
from edgesdk_quantize.formats import FP16, Int4Symmetric
from onnx import TensorProto, helper
from support.other_process import run_python
from support.qnn_simulator import RECORD, SETTINGS, graph, on_cpu, on_simulator, require_simulator
from support.static_pairs import static_state
from support.tiny_models import VARIANTS, make_tiny

from edgesdk.bundle.manifest import Manifest, StaticShape
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.devices import STATIC_BLOCKS
from edgesdk.engines.npu.onnx_compiler import OnnxCompiler, chosen_target, with_target
from edgesdk.engines.registry import check_options
from edgesdk.errors import EngineError, InvalidOption, RequestError

pytestmark = pytest.mark.integration

QUALCOMM = "QNNExecutionProvider"
NORM = "SimplifiedLayerNormalization"
SHAPE = StaticShape(prefill_tokens=16, window=32)
INT4 = WeightScheme("int4", Int4Symmetric(32), FP16)


@pytest.fixture(autouse=True)
def simulator() -> None:
    require_simulator()


def floats(*shape: int, scale: float = 1.0):
    return (np.random.default_rng(0).standard_normal(shape) * scale).astype(np.float16)


def norm(x: str, gain: str, y: str):
    return helper.make_node(NORM, [x, gain], [y], axis=-1, epsilon=1e-6, stash_type=1)


def blocks(x: str, *weights: str, y: str = "y"):
    return helper.make_node(
        "MatMulNBits", [x, *weights], [y], domain="com.microsoft", K=64, N=64, bits=4, block_size=32
    )


def block_weights():
    random = np.random.default_rng(1)
    codes = random.integers(0, 256, (64, 2, 16)).astype(np.uint8)
    return {"codes": codes, "scales": random.uniform(0.01, 0.02, 128).astype(np.float16)}


def static_graphs(variant: str, folder: Path, scheme=INT4) -> list[onnx.ModelProto]:
    """The graphs that we export of a family."""
    make_tiny(variant, folder)
    static_state(read_decoder(open_checkpoint(folder)), folder, scheme=scheme, shape=SHAPE)
    return [onnx.load(folder / name, load_external_data=False) for name in GRAPH_FILES.values()]


def operators(models: list[onnx.ModelProto]) -> Counter[str]:
    return Counter(node.op_type for model in models for node in model.graph.node)


def bundle_of(folder: Path) -> Bundle:
    """A bundle of which only the graphs are known."""
    manifest = Manifest.model_construct(roles=GRAPH_FILES, static=SHAPE, files=())
    return Bundle(folder, manifest, "00" * 32)


def test_a_norm_of_four_dimensions_is_wrong(tmp_path: Path) -> None:
    gain, heads = {"gain": np.ones(32, np.float16)}, floats(1, 16, 4, 32)
    four = graph([norm("x", "gain", "y")], gain, {"x": heads}, ("y", heads.shape))
    found, _ = on_simulator(four, {"x": heads}, tmp_path)
    assert np.abs(found - on_cpu(four, {"x": heads})).max() > 1
    rows = heads.reshape(1, 64, 32)
    three = graph([norm("x", "gain", "y")], gain, {"x": rows}, ("y", rows.shape))
    found, _ = on_simulator(three, {"x": rows}, tmp_path)
    np.testing.assert_allclose(found, on_cpu(three, {"x": rows}), atol=0.01)


@pytest.mark.parametrize("variant", ["qwen3", "gemma3"])
def test_our_norms_have_three_dimensions(variant, tmp_path: Path) -> None:
    for model in static_graphs(variant, tmp_path):
        shapes = {each.name: each.dims[0] for each in model.graph.initializer if each.dims}
        makers = {node.output[0]: node for node in model.graph.node}
        of_heads = [
            makers[node.input[0]]
            for node in model.graph.node
            if node.op_type == NORM and ("q_norm" in node.input[1] or "k_norm" in node.input[1])
        ]
        assert len(of_heads) >= 6
        assert {(node.op_type, shapes[node.input[1]]) for node in of_heads} == {("Reshape", 3)}


def test_a_norm_in_primitive_operators_overflows(tmp_path: Path) -> None:
    x = floats(1, 4, 64, scale=400)
    weights = {
        "axis": np.array([-1]),
        "epsilon": np.float16(1e-5),
        "gain": np.ones(64, np.float16),
    }
    steps = [
        ("Mul", ["x", "x"], "square"),
        ("ReduceMean", ["square", "axis"], "mean"),
        ("Add", ["mean", "epsilon"], "more"),
        ("Sqrt", ["more"], "root"),
        ("Div", ["x", "root"], "normed"),
        ("Mul", ["normed", "gain"], "y"),
    ]
    nodes = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps]
    primitive = graph(nodes, weights, {"x": x}, ("y", x.shape))
    native = graph([norm("x", "gain", "y")], {"gain": weights["gain"]}, {"x": x}, ("y", x.shape))
    expected = on_cpu(native, {"x": x})
    found, _ = on_simulator(primitive, {"x": x}, tmp_path)
    assert np.abs(found - expected).max() > 0.5
    found, _ = on_simulator(native, {"x": x}, tmp_path)
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_a_quantized_reciprocal_is_wrong(tmp_path: Path) -> None:
    """Of values from 100 to 60,000. A quotient on the same grids is right."""
    x = np.geomspace(100, 60_000, 256).astype(np.float32).reshape(1, 4, 64)
    weights = {"in_step": np.float32(60_000 / 65535), "out_step": np.float32(0.01 / 65535)}
    weights |= {
        "zero": np.uint16(0),
        "one_code": np.full(1, 65535, np.uint16),
        "one_step": np.float32(1 / 65535),
    }

    def on_grids(operator: list[onnx.NodeProto]) -> onnx.ModelProto:
        """x on its grid, then the operator, then what that gives on its grid."""
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "in_step", "zero"], ["x_codes"]),
            helper.make_node("DequantizeLinear", ["x_codes", "in_step", "zero"], ["x_on_grid"]),
            *operator,
            helper.make_node("QuantizeLinear", ["exact", "out_step", "zero"], ["y_codes"]),
            helper.make_node("DequantizeLinear", ["y_codes", "out_step", "zero"], ["y"]),
        ]
        return graph(nodes, weights, {"x": x}, ("y", x.shape))

    reciprocal = on_grids([helper.make_node("Reciprocal", ["x_on_grid"], ["exact"])])
    one = helper.make_node("DequantizeLinear", ["one_code", "one_step", "zero"], ["one"])
    quotient = on_grids([one, helper.make_node("Div", ["one", "x_on_grid"], ["exact"])])
    errors = []
    for model in (reciprocal, quotient):
        found, _ = on_simulator(model, {"x": x}, tmp_path)
        errors.append(np.abs(found - on_cpu(model, {"x": x})).max())
    # The largest is 0.01.
    assert errors[0] > 5e-4
    assert errors[1] < 2e-5


def test_our_graphs_have_native_norms_and_none_that_it_does_not_run(tmp_path: Path) -> None:
    for variant in VARIANTS:
        found = operators(static_graphs(variant, tmp_path / variant))
        assert found[NORM] >= 14, variant
        refused = {"ReduceMean", "Sqrt", "Reciprocal", "Pow", "SkipSimplifiedLayerNormalization"}
        assert not (refused | {"GroupQueryAttention"}) & set(found), variant


def test_a_norm_with_a_sum_stays_on_the_cpu(tmp_path: Path) -> None:
    x = floats(1, 4, 64)
    skip = helper.make_node(
        "SkipSimplifiedLayerNormalization", ["x", "x", "gain"], ["y"], domain="com.microsoft"
    )
    model = graph([skip], {"gain": np.ones(64, np.float16)}, {"x": x}, ("y", x.shape))
    with pytest.raises(Exception, match="fallback to CPU EP has been explicitly disabled"):
        on_simulator(model, {"x": x}, tmp_path)


def test_int4_with_a_zero_point_is_wrong(tmp_path: Path) -> None:
    """Of weights with one scale, beside 16-bit activations."""
    x = np.random.default_rng(0).standard_normal((1, 4, 64)).astype(np.float32)

    def int4(name: str, codes: np.ndarray, dims: list[int]) -> onnx.TensorProto:
        low = np.pad(codes.reshape(-1) & 15, (0, codes.size % 2)).astype(np.uint8)
        packed = (low[0::2] | low[1::2] << 4).tobytes()
        return helper.make_tensor(name, TensorProto.INT4, dims, packed, raw=True)

    codes = np.random.default_rng(1).integers(-8, 8, (64, 64)).astype(np.int8)
    errors = {}
    for zero_point in (0, 3):
        weights = {
            "codes": int4("codes", codes, [64, 64]),
            "zero": int4("zero", np.array([zero_point], np.int8), []),
            "step": np.float32(0.015),
            "grid": np.float32(8 / 65535),
            "middle": np.uint16(32768),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "grid", "middle"], ["x_codes"]),
            helper.make_node("DequantizeLinear", ["x_codes", "grid", "middle"], ["x_on_grid"]),
            helper.make_node("DequantizeLinear", ["codes", "step", "zero"], ["weight"]),
            helper.make_node("MatMul", ["x_on_grid", "weight"], ["product"]),
            helper.make_node("QuantizeLinear", ["product", "grid", "middle"], ["y_codes"]),
            helper.make_node("DequantizeLinear", ["y_codes", "grid", "middle"], ["y"]),
        ]
        model = graph(nodes, weights, {"x": x}, ("y", x.shape))
        found, _ = on_simulator(model, {"x": x}, tmp_path)
        errors[zero_point] = np.abs(found - on_cpu(model, {"x": x})).max()
    assert errors[0] < 0.05
    assert errors[3] > 1


def test_our_blocks_have_no_zero_points(tmp_path: Path) -> None:
    models = static_graphs("llama", tmp_path)
    products = [n for m in models for n in m.graph.node if n.op_type == "MatMulNBits"]
    assert len(products) == 30
    assert all(len(node.input) == 3 for node in products)


def gated_mlp(tokens: int):
    """A norm and an MLP of 8-bit weights and 16-bit activations, and what goes in."""
    random = np.random.default_rng(0)
    x = random.standard_normal((1, tokens, 64)).astype(np.float32)
    weights = {"gain": np.ones(64, np.float32), "middle": np.uint16(32768)}
    nodes = [norm("x", "gain", "normed")]

    def on_grid(name: str, largest: float, on: str) -> str:
        weights[f"{on}_step"] = np.float32(largest / 32768)
        for kind, before, after in (
            ("Quantize", name, f"{on}_codes"),
            ("Dequantize", f"{on}_codes", on),
        ):
            made = helper.make_node(f"{kind}Linear", [before, f"{on}_step", "middle"], [after])
            nodes.append(made)
        return on

    def linear(name: str, source: str, rows: int, columns: int, result: str) -> None:
        matrix = random.standard_normal((rows, columns)) / np.sqrt(rows)
        steps = (np.abs(matrix).max(0) / 127).astype(np.float32)
        weights[f"{name}_matrix"] = np.round(matrix / steps).astype(np.int8)
        weights[f"{name}_steps"] = steps
        inputs = [f"{name}_matrix", f"{name}_steps"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_floats"], axis=1))
        rounded = on_grid(source, 5, f"{name}_in")
        nodes.append(helper.make_node("MatMul", [rounded, f"{name}_floats"], [f"{name}_product"]))
        on_grid(f"{name}_product", 6, result)

    linear("gate", "normed", 64, 96, "gate")
    linear("up", "normed", 64, 96, "up")
    nodes.append(helper.make_node("Sigmoid", ["gate"], ["share"]))
    nodes.append(helper.make_node("Mul", ["gate", "share"], ["active"]))
    nodes.append(helper.make_node("Mul", ["active", "up"], ["gated"]))
    linear("down", "gated", 96, 64, "y")
    return graph(nodes, weights, {"x": x}, ("y", x.shape)), {"x": x}


def test_quantized_activations_of_16_tokens_are_wrong(tmp_path: Path) -> None:
    errors = {}
    for tokens in (1, 8, 16, 32, 128):
        model, inputs = gated_mlp(tokens)
        found, _ = on_simulator(model, inputs, tmp_path)
        errors[tokens] = np.abs(found - on_cpu(model, inputs)).max()
    assert errors.pop(16) > 1
    assert max(errors.values()) < 0.01


def test_our_quantized_activations_are_never_of_16_tokens() -> None:
    scheme = static_scheme(WeightScheme.named("int8"), STATIC_BLOCKS, activations="auto")
    with pytest.raises(RequestError, match="wrong numbers of quantized activations of 16 tokens"):
        check_prefill(scheme, 16)
    check_prefill(scheme, 32)


def test_its_backend_that_answers_zeros_is_refused() -> None:
    with pytest.raises(InvalidOption, match="must be one of htp; not 'saver'"):
        check_options(RECORD, {"backend_type": "saver"})


def test_a_graph_of_any_length_stays_on_the_cpu_and_is_refused(tmp_path: Path) -> None:
    x = floats(1, 4, 64)
    loose = graph(
        [blocks("x", "codes", "scales")],
        block_weights(),
        {"x": x},
        ("y", (1, "tokens", 64)),
        shapes={"x": (1, "tokens", 64)},
    )
    _, nodes = on_simulator(loose, {"x": x}, tmp_path, strict=False)
    assert nodes == {"CPUExecutionProvider": 1}
    for name in GRAPH_FILES.values():
        onnx.save(loose, tmp_path / name)
    compiler = OnnxCompiler(
        bundle_of(tmp_path), RECORD, chosen_target(RECORD, SETTINGS, simulated=True), SETTINGS
    )
    with pytest.raises(EngineError, match=r"cannot compile .* as a whole for 60"):
        compiler.write(tmp_path, lambda done, of: None)


# In a process of its own: one that has compiled for a processor before remembers it.
_WITHOUT_A_PROCESSOR = """
import os, sys
from pathlib import Path
# The simulator prints a line of its own.
answer = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from support.qnn_simulator import RECORD, SETTINGS
from integration.test_qnn_traps import bundle_of
from edgesdk.engines.npu.onnx_compiler import OnnxCompiler, chosen_target
from edgesdk.errors import EngineError
folder = Path(sys.argv[1])
out = folder / "out"
out.mkdir()
try:
    OnnxCompiler(bundle_of(folder), RECORD, None, SETTINGS).write(out, lambda done, of: None)
    print(1, file=answer)
except EngineError as error:
    assert "as a whole" in str(error), error
    target = chosen_target(RECORD, SETTINGS, simulated=True)
    OnnxCompiler(bundle_of(folder), RECORD, target, SETTINGS).write(out, lambda done, of: None)
    print(2, file=answer)
"""


def test_without_a_processor_blocks_stay_on_the_cpu(tmp_path: Path) -> None:
    static_graphs("llama", tmp_path)
    assert run_python(_WITHOUT_A_PROCESSOR, str(tmp_path), timeout=120) == 2


@pytest.mark.parametrize(
    ("given", "soc", "arch"),
    [({}, "60", "73"), ({"soc_model": 57}, "57", "75"), ({"htp_arch": 79}, "69", "79")],
)
def test_a_processor_is_always_named(given, soc, arch) -> None:
    settings = replace(SETTINGS, options=given)
    target = chosen_target(RECORD, settings, simulated=True)
    options = with_target(settings, target).options
    assert (options["soc_model"], options["htp_arch"]) == (soc, arch)
    # Hardware knows itself.
    if not given:
        assert chosen_target(RECORD, settings, simulated=False) is None


def test_processors_that_cannot_be_are_refused() -> None:
    settings = replace(SETTINGS, options={"soc_model": 57, "htp_arch": 73})
    with pytest.raises(InvalidOption, match=r"no processor with soc_model=57, htp_arch=73"):
        chosen_target(RECORD, settings, simulated=True)
