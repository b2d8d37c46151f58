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
from edgesdk.engines.onnx.decode_state import (
    OnnxDecodeState,
    batches_equal_single_steps,
)
from edgesdk.engines.onnx.kv_cache import CacheShape
from edgesdk.engines.onnx.loaded_decoder import LoadedDecoder
from edgesdk.engines.onnx.verification_batch import VerificationVerdict
from edgesdk.engines.saved_state import KvIdentity
from edgesdk.system.cancellation import CancellationToken, Cancelled

pytestmark = pytest.mark.integration

LAYERS, HEADS, KV_HEADS, HEAD, VOCAB, CONTEXT = 2, 6, 2, 16, 96, 700
WIDTH = (HEADS + 2 * KV_HEADS) * HEAD
FAMILIES: dict[str, dict[str, float]] = {
    "plain": {},
    "rope": {"do_rotary": 1},
    "window": {"do_rotary": 1, "local_window_size": 8},
    "softcap": {"softcap": 5.0},
}


class Settled(VerificationVerdict):
    """A verdict that nobody measured."""

    def __init__(self, equal: bool) -> None:
        super().__init__("00" * 32, 1)
        self._verdict = equal


def attention_decoder(
    threads: int, verdict: VerificationVerdict | None = None, **attributes: float
) -> LoadedDecoder:
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
        verdict=verdict or Settled(True),
    )


@pytest.mark.parametrize("held", [1, 40, 250, 600])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_single_calls_bit_for_bit(family: str, held: int) -> None:
    # With several threads, the kernel of soft caps reads rows that another has yet to write. A
    # measurement (`edgesdk.generation.batched_verification`) then keeps such a model from drafting.
    decoder = attention_decoder(1 if family == "softcap" else 2, **FAMILIES[family])
    ids = np.random.default_rng(held).integers(0, VOCAB, held + 48).tolist()
    state = OnnxDecodeState(decoder)
    state.extend(ids[:held])
    start = state.fork()
    single = np.concatenate([state.extend([token]).copy() for token in ids[held:]])
    differ = False
    for count in (2, 3, 5, 8):
        batched = start.fork()
        together = start.fork()
        for at in range(0, 40, count):
            tokens = ids[held + at : held + at + count]
            wanted = single[at : at + count]
            np.testing.assert_array_equal(batched.extend(tokens, logits="each"), wanted)
            np.testing.assert_array_equal(batched.hidden_states, wanted)
            rows = together.extend(tokens, logits="all")
            np.testing.assert_array_equal(together.hidden_states, rows)
            np.testing.assert_allclose(rows, wanted, atol=1e-4)
            differ |= not np.array_equal(rows, wanted)
        # A plain step on top of them is the plain step.
        at = len(batched.tokens) - held
        np.testing.assert_array_equal(batched.extend(ids[held + at :][:1])[0], single[at])
    if platform.machine() in ("x86_64", "AMD64"):
        # Were they equal anyway, this would test nothing.
        assert differ or held == 1


def test_a_rewind_and_a_fork_leave_the_others_alone() -> None:
    decoder = attention_decoder(1, do_rotary=1)
    ids = np.random.default_rng(3).integers(0, VOCAB, 80).tolist()
    plain = OnnxDecodeState(decoder)
    single = np.concatenate([plain.extend([token]).copy() for token in ids])
    state = OnnxDecodeState(decoder)
    for token in ids[:20]:
        state.extend([token])
    state.extend([1, 2, 3, 4, 5], logits="each")
    twin = state.fork()
    twin.extend([6, 7, 8], logits="each")
    state.rewind(20)
    for at in range(20, 60, 4):
        rows = state.extend(ids[at : at + 4], logits="each")
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


def test_what_was_written_batched_is_saved_and_restored(tmp_path: Path) -> None:
    decoder = attention_decoder(1)
    ids = np.random.default_rng(5).integers(0, VOCAB, 30).tolist()
    state, back = OnnxDecodeState(decoder), OnnxDecodeState(decoder)
    state.extend(ids[:10])
    state.extend(ids[10:18], logits="each")
    state.save(tmp_path / "kept")
    back.restore(tmp_path / "kept")
    wanted = state.extend(ids[18:22], logits="each").copy()
    np.testing.assert_array_equal(back.extend(ids[18:22], logits="each"), wanted)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_installed_onnxruntime_is_measured(family: str, threads: int, tmp_path: Path) -> None:
    verdict = VerificationVerdict("00" * 32, threads, tmp_path)
    decoder = attention_decoder(threads, verdict, **FAMILIES[family])
    runs = BatchRuns(decoder)

    # The kernel of soft caps reads rows that others have yet to write. With several threads it
    # mostly gets away with that, but not when the rows stand backwards.
    assert verdict.settle(lambda: batches_equal_single_steps(decoder)) is (family != "softcap")
    assert len(list(tmp_path.iterdir())) == 1

    state = OnnxDecodeState(decoder)
    state.extend([1, 2, 3])
    runs.count = 0
    rows = state.extend([5, 6, 7], logits="each").copy()
    assert runs.count == (1 if family != "softcap" else 3)
    alone = OnnxDecodeState(decoder)
    alone.extend([1, 2, 3])
    np.testing.assert_array_equal(
        rows, np.concatenate([alone.extend([i]).copy() for i in (5, 6, 7)])
    )


class BatchRuns:
    """Counts the calls of a decoder's session."""

    def __init__(self, decoder: LoadedDecoder) -> None:
        self.count = 0
        self._session = decoder.session
        self._run = decoder.session.run_with_iobinding
        decoder.session.run_with_iobinding = self

    def __call__(self, *arguments: object) -> None:
        self.count += 1
        self._run(*arguments)


def test_a_verdict_is_kept_for_the_next_process(tmp_path: Path) -> None:
    measured: list[bool] = []

    def settled(answer: bool, model: str = "11" * 32, threads: int = 1) -> bool:
        def measure() -> bool:
            measured.append(answer)
            return answer

        return VerificationVerdict(model, threads, tmp_path).settle(measure)

    assert settled(True)
    assert settled(False), "it was measured already"
    assert not settled(False, threads=2)
    assert not settled(True, threads=2)
    assert settled(True, model="22" * 32)
    assert measured == [True, False, True]
    for path in tmp_path.iterdir():
        path.write_text("{")
    assert not settled(False), "a damaged file is no verdict"


def test_a_verdict_of_another_onnxruntime_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert VerificationVerdict("11" * 32, 1, tmp_path).settle(lambda: True)
    monkeypatch.setattr("edgesdk.engines.onnx.verification_batch.ort.__version__", "9.9.9")
    assert not VerificationVerdict("11" * 32, 1, tmp_path).settle(lambda: False)


def test_what_cannot_be_measured_or_kept_is_single_steps(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    verdict = VerificationVerdict("11" * 32, 1, tmp_path / "file")
    assert verdict.settle(lambda: True)
    nothing = VerificationVerdict("11" * 32, 1, tmp_path)
    assert not nothing.settle(lambda: None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_is_computed_where_memory_cannot_be_aliased(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: int) -> None:
        raise OSError("no such memory")

    monkeypatch.setattr("edgesdk.engines.onnx.kv_cache.aliased_memory", refused)
    decoder = attention_decoder(1)
    runs = BatchRuns(decoder)
    assert batches_equal_single_steps(decoder) is None
    assert runs.count == 0


def test_a_cancelled_measurement_gives_no_verdict(tmp_path: Path) -> None:
    verdict = VerificationVerdict("11" * 32, 1, tmp_path)
    decoder = attention_decoder(1, verdict)
    state = OnnxDecodeState(decoder)
    state.extend([1, 2, 3])
    cancellation = CancellationToken()
    cancellation.cancel()
    with pytest.raises(Cancelled):
        state.extend([4, 5], logits="each", cancellation=cancellation)
    assert state.tokens == (1, 2, 3)
    assert not list(tmp_path.iterdir())
    state.extend([4, 5], logits="each")
    assert len(list(tmp_path.iterdir())) == 1


def test_others_take_single_steps_while_one_measures(tmp_path: Path) -> None:
    verdict = VerificationVerdict("11" * 32, 1, tmp_path)
    seen: list[bool] = []

    def measure() -> bool:
        seen.append(verdict.settle(lambda: True))
        return True

    assert verdict.settle(measure)
    assert seen == [False]


def test_a_verdict_against_batches_means_single_calls() -> None:
    known = attention_decoder(1)
    unknown = replace(known, verdict=Settled(False))
    runs = BatchRuns(known)
    found = []
    for decoder, calls in ((known, 1), (unknown, 3)):
        runs.count = 0
        found.append(OnnxDecodeState(decoder).extend([5, 6, 7], logits="each"))
        assert runs.count == calls
    assert np.array_equal(*found)
