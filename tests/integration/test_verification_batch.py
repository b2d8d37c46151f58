"""Tokens computed together by the kernels of one token: the very numbers of single calls.

The decoder here is nothing but onnxruntime's attention, because what else there is in a decoder
may round in another way on another processor: logits are what the attention puts out, and hidden
states are the same numbers.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk.bundle import graph_io
from edgesdk.engines.onnx.decode_state import LoadedDecoder, OnnxDecodeState
from edgesdk.engines.onnx.kv_cache import CacheShape
from edgesdk.engines.onnx.verification_batch import verifies_in_batches
from edgesdk.engines.saved_state import KvIdentity

pytestmark = pytest.mark.integration

LAYERS, HEADS, KV_HEADS, HEAD, VOCAB, CONTEXT = 2, 6, 2, 16, 96, 700
WIDTH = (HEADS + 2 * KV_HEADS) * HEAD
FAMILIES: dict[str, dict[str, float]] = {
    "plain": {},
    "rope": {"do_rotary": 1},
    "window": {"do_rotary": 1, "local_window_size": 8},
    "softcap": {"softcap": 5.0},
}


def attention_decoder(threads: int, **attributes: float) -> LoadedDecoder:
    """Each layer attends by an embedding of its own; the last layer's output are the logits."""
    rng = np.random.default_rng(0)
    angles = np.arange(CONTEXT)[:, None] / 10.0 ** np.arange(0, 2, 2 / (HEAD / 2))
    weights = {
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "end": np.array([2**60]),
        "axis": np.array([1]),
    }
    inputs = [
        helper.make_tensor_value_info(graph_io.INPUT_IDS, TensorProto.INT64, ["b", "s"]),
        helper.make_tensor_value_info(graph_io.LOGITS_FROM, TensorProto.INT64, [1]),
        helper.make_tensor_value_info(graph_io.SEQLENS_K, TensorProto.INT32, ["b"]),
        helper.make_tensor_value_info(graph_io.TOTAL_SEQUENCE_LENGTH, TensorProto.INT32, []),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in (graph_io.LOGITS, graph_io.HIDDEN_STATES)
    ]
    cache = ["b", KV_HEADS, "c", HEAD]
    nodes = []
    for layer in range(LAYERS):
        weights[f"table{layer}"] = rng.standard_normal((VOCAB, WIDTH)).astype(np.float32)
        past, present = graph_io.past_names(layer), graph_io.present_names(layer)
        inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, cache) for n in past]
        outputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, cache) for n in present]
        rope = ["cos", "sin"] if "do_rotary" in attributes else []
        lengths = [graph_io.SEQLENS_K, graph_io.TOTAL_SEQUENCE_LENGTH]
        nodes += [
            helper.make_node("Gather", [f"table{layer}", graph_io.INPUT_IDS], [f"qkv{layer}"]),
            helper.make_node(
                "GroupQueryAttention",
                [f"qkv{layer}", "", "", *past, *lengths, *rope],
                [f"mixed{layer}", *present],
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=KV_HEADS,
                **attributes,
            ),
        ]
    last = [f"mixed{LAYERS - 1}", graph_io.LOGITS_FROM, "end", "axis"]
    nodes.append(helper.make_node("Slice", last, [graph_io.HIDDEN_STATES]))
    nodes.append(helper.make_node("Identity", [graph_io.HIDDEN_STATES], [graph_io.LOGITS]))
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "attention", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return LoadedDecoder(
        session=ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        ),
        cache_shape=CacheShape(LAYERS, KV_HEADS, HEAD),
        vocab_size=VOCAB,
        hidden_size=VOCAB,
        context_length=CONTEXT,
        kv_identity=KvIdentity("onnx", "00" * 32, "float32"),
        apart=True,
    )


@pytest.mark.parametrize("held", [1, 40, 250, 600])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_single_calls_bit_for_bit(family: str, held: int) -> None:
    # With several threads, the kernel of soft caps reads rows that another has yet to write. A
    # measurement (`edgesdk.generation.batched_verification`) then keeps such a model from drafting.
    decoder = attention_decoder(1 if family == "softcap" else 2, **FAMILIES[family])
    ids = np.random.default_rng(held).integers(0, VOCAB, held + 48).tolist()
    sequence = OnnxDecodeState(decoder)
    sequence.extend(ids[:held])
    start = sequence.fork()
    single = np.concatenate([sequence.extend([token]).copy() for token in ids[held:]])
    differ = False
    for count in (2, 3, 5, 8):
        apart = start.fork()
        together = start.fork()
        for at in range(0, 40, count):
            tokens = ids[held + at : held + at + count]
            wanted = single[at : at + count]
            np.testing.assert_array_equal(apart.extend(tokens, logits="each"), wanted)
            np.testing.assert_array_equal(apart.hidden_states, wanted)
            rows = together.extend(tokens, logits="all")
            np.testing.assert_array_equal(together.hidden_states, rows)
            np.testing.assert_allclose(rows, wanted, atol=1e-4)
            differ |= not np.array_equal(rows, wanted)
        # A plain step on top of them is the plain step.
        at = len(apart.tokens) - held
        np.testing.assert_array_equal(apart.extend(ids[held + at :][:1])[0], single[at])
    if platform.machine() in ("x86_64", "AMD64"):
        # Were they equal anyway, this would test nothing.
        assert differ or held == 1


def test_a_rewind_and_a_fork_leave_the_others_alone() -> None:
    decoder = attention_decoder(1, do_rotary=1)
    ids = np.random.default_rng(3).integers(0, VOCAB, 80).tolist()
    plain = OnnxDecodeState(decoder)
    single = np.concatenate([plain.extend([token]).copy() for token in ids])
    sequence = OnnxDecodeState(decoder)
    for token in ids[:20]:
        sequence.extend([token])
    sequence.extend([1, 2, 3, 4, 5], logits="each")
    twin = sequence.fork()
    twin.extend([6, 7, 8], logits="each")
    sequence.rewind(20)
    for at in range(20, 60, 4):
        rows = sequence.extend(ids[at : at + 4], logits="each")
        np.testing.assert_array_equal(rows, single[at : at + 4])


@pytest.mark.parametrize("memory", ["too little", "enough"])
def test_without_a_batch_each_row_is_a_call(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: int) -> None:
        raise OSError("no such memory")

    count = 30
    if memory == "too little":
        monkeypatch.setattr("edgesdk.engines.onnx.kv_cache.aliased_memory", refused)
        count = 5
    decoder = attention_decoder(1)
    ids = np.random.default_rng(4).integers(0, VOCAB, 10 + count).tolist()
    one, other = OnnxDecodeState(decoder), OnnxDecodeState(decoder)
    one.extend(ids[:10])
    other.extend(ids[:10])
    single = np.concatenate([other.extend([token]).copy() for token in ids[10:]])
    np.testing.assert_array_equal(one.extend(ids[10:], logits="each"), single)
    np.testing.assert_array_equal(one.hidden_states, single)
    assert one.tokens == other.tokens
    np.testing.assert_array_equal(one.extend([1]), other.extend([1]))


def test_what_was_written_apart_is_saved_and_restored(tmp_path: Path) -> None:
    decoder = attention_decoder(1)
    ids = np.random.default_rng(5).integers(0, VOCAB, 30).tolist()
    sequence, back = OnnxDecodeState(decoder), OnnxDecodeState(decoder)
    sequence.extend(ids[:10])
    sequence.extend(ids[10:18], logits="each")
    sequence.save(tmp_path / "kept")
    back.restore(tmp_path / "kept")
    wanted = sequence.extend(ids[18:22], logits="each").copy()
    np.testing.assert_array_equal(back.extend(ids[18:22], logits="each"), wanted)


@pytest.mark.parametrize(
    ("spec", "release", "known"),
    [
        ({"attention_softcap": None}, "1.31.1", True),
        ({"attention_softcap": None}, "1.30.0", False),
        ({"attention_softcap": None}, "1.32.0", False),
        ({"attention_softcap": 50.0}, "1.31.1", False),
        ({}, "1.31.1", False),
    ],
)
def test_the_order_of_writing_is_relied_on_only_where_it_is_known(
    spec: dict[str, float | None], release: str, known: bool
) -> None:
    assert verifies_in_batches(spec, release) is known


def test_nor_where_the_kernels_are_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")
    assert not verifies_in_batches({"attention_softcap": None}, "1.31.1")


def test_an_unknown_order_means_single_calls() -> None:
    known = attention_decoder(1)
    unknown = replace(known, apart=False)
    found = [
        OnnxDecodeState(decoder).extend([5, 6, 7], logits="each") for decoder in (known, unknown)
    ]
    assert np.array_equal(*found)
