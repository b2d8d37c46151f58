"""What `edgesdk.engines.base` promises, held to by every engine.

Each case brings a reference that shares no code with the engine: a numpy decoder without a cache
for the ONNX one, a bare llama.cpp loop for the GGUF one, transformers for the MLX and LiteRT ones,
for static graphs (of a model that sees all, and of one whose tokens leave the KV window),
and for the Core ML one, which runs on an interpreter in Core ML's place.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bare_llama import BareLlama
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.tiny_models import VOCAB_SIZE, make_tiny
from tiny_onnx_bundle import VOCAB, reference_logits, tiny_weights, write_tiny_bundle

from edgesdk.engines.base import DecodeState, Engine, Logits
from edgesdk.engines.onnx.engine import OnnxEngine
from edgesdk.engines.onnx.split_engine import SplitEngine
from edgesdk.engines.registry import open_engine
from edgesdk.errors import (
    ContextOverflow,
    DeviceUnavailable,
    EngineError,
    InvalidOption,
    RequestError,
)

pytestmark = pytest.mark.integration

CONTEXT = 700


@dataclass(frozen=True)
class Case:
    """An engine to test.

    Attributes:
        reopen: opens the same model once more.
        reference: logits of all positions of a list of ids, [n, vocab].
        same: whether engine logits are those of the reference, rounding allowed for.
        ids: 700 ids of text.
    """

    engine: Engine
    reopen: Callable[[], Engine]
    reference: Callable[[list[int]], Logits]
    same: Callable[[Logits, Logits], bool]
    ids: list[int]


CASES = [
    *("onnx", "split", "gguf", "mlx", "coreml", "litert", "static", "sliding", "openvino"),
    "openvino, any length",
]
# test_webgpu.py runs these tests in an environment that has it, and a GPU in software.
if importlib.util.find_spec("onnxruntime_ep_webgpu") is not None:
    CASES.append("webgpu")


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Case]:
    make = {
        "onnx": _onnx_case,
        "split": _split_case,
        "gguf": _gguf_case,
        "mlx": _mlx_case,
        "webgpu": _webgpu_case,
        "coreml": _coreml_case,
        "litert": _litert_case,
        "static": _static_case,
        "sliding": _sliding_case,
        "openvino": _openvino_case,
        "openvino, any length": _openvino_case_of_any_length,
    }[request.param]
    yield from make(request, tmp_path_factory)


def _onnx_case(
    _: pytest.FixtureRequest, tmp_path_factory: Any, device: str = "cpu"
) -> Iterator[Case]:
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny")
    weights = tiny_weights()
    engine = open_engine(bundle, device, threads=1)
    yield Case(
        engine=engine,
        reopen=lambda: open_engine(bundle, device, threads=1),
        reference=lambda ids: reference_logits(weights, ids),
        same=lambda found, wanted: bool(np.allclose(found, wanted, atol=2e-3)),
        ids=np.random.default_rng(5).integers(0, VOCAB, CONTEXT).tolist(),
    )
    engine.close()


def _webgpu_case(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Case]:
    try:
        yield from _onnx_case(request, tmp_path_factory, "webgpu")
    except DeviceUnavailable as error:
        pytest.skip(error.message)


def _split_case(_: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Case]:
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny")
    weights = tiny_weights()

    def split() -> SplitEngine:
        prefill, decode = (open_engine(bundle, "cpu", threads=1) for _ in range(2))
        assert isinstance(prefill, OnnxEngine)
        assert isinstance(decode, OnnxEngine)
        return SplitEngine(prefill, decode)

    engine = split()
    yield Case(
        engine=engine,
        reopen=split,
        reference=lambda ids: reference_logits(weights, ids),
        same=lambda found, wanted: bool(np.allclose(found, wanted, atol=2e-3)),
        ids=np.random.default_rng(5).integers(0, VOCAB, CONTEXT).tolist(),
    )
    engine.close()


def _gguf_case(request: pytest.FixtureRequest, _: Any) -> Iterator[Case]:
    pytest.importorskip("llama_cpp")
    path: Path = request.getfixturevalue("smollm2_gguf")
    with pytest.MonkeyPatch.context() as patch:
        # The least that llama.cpp makes, so that short tests cross a border of the cache.
        patch.setattr("edgesdk.engines.gguf.native_model.FIRST_CELLS", 256)
        engine = open_engine(path, threads=1, context=CONTEXT)
        bare = BareLlama(path)
        yield Case(
            engine=engine,
            reopen=lambda: open_engine(path, threads=1, context=CONTEXT),
            reference=bare.logits,
            same=_same_distribution,
            ids=bare.encode(_TEXT)[:CONTEXT],
        )
        bare.close()
    engine.close()


def _mlx_case(_: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Case]:
    pytest.importorskip("mlx.core")
    yield from _tiny_case(tmp_path_factory, "llama", "apple")


def _litert_case(_: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Case]:
    job = {"format": "litert", "target": "litert", "window": CONTEXT, "prefill": 32}
    yield from _tiny_case(tmp_path_factory, "llama", "litert", **job)


def _static_case(_: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Case]:
    job = {"target": "npu", "window": CONTEXT, "prefill": 16}
    yield from _tiny_case(tmp_path_factory, "llama", "cpu", **job)


def _sliding_case(_: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Case]:
    # Layers that look at 8 tokens, and 32 slots.
    job = {"target": "npu", "window": 32, "prefill": 16}
    yield from _tiny_case(tmp_path_factory, "mistral", "cpu", **job)


def _openvino_case_of_any_length(
    request: pytest.FixtureRequest, tmp_path_factory: Any
) -> Iterator[Case]:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    yield from _onnx_case(request, tmp_path_factory, "intel")


def _openvino_case(_: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Case]:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    yield from _tiny_case(
        tmp_path_factory,
        "llama",
        "intel",
        # A GPU or an NPU would compute in float16.
        options={"device": "CPU"},
        target="intel",
        window=CONTEXT,
        prefill=16,
    )


def _tiny_case(
    tmp_path_factory: Any,
    variant: str,
    device: str,
    *,
    options: dict[str, object] | None = None,
    **job: Any,
) -> Iterator[Case]:
    """In float32, against transformers."""
    folder = tmp_path_factory.mktemp(device)
    model = make_tiny(variant, folder / "checkpoint", max_position_embeddings=CONTEXT)
    checkpoint, destination = folder / "checkpoint", folder / "tiny"
    bundle = export(
        ExportJob(checkpoint, destination, "tiny", scheme="fp32", quality_tokens=0, **job),
        SilentProgress(),
    )

    def reference(ids: list[int]) -> Logits:
        with torch.no_grad():
            logits: Logits = model(torch.tensor([ids])).logits[0].numpy()
        return logits

    engine = open_engine(bundle, device, threads=1, options=options)
    yield Case(
        engine=engine,
        reopen=lambda: open_engine(bundle, device, threads=1, options=options),
        reference=reference,
        same=lambda found, wanted: bool(np.allclose(found, wanted, atol=2e-3)),
        ids=np.random.default_rng(5).integers(0, VOCAB_SIZE, CONTEXT).tolist(),
    )
    engine.close()


def _coreml_case(_: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Case]:
    pytest.importorskip("coremltools")
    from support.fake_coreml import core_ml_in_numpy

    folder = tmp_path_factory.mktemp("coreml")
    model = make_tiny("llama", folder / "checkpoint", max_position_embeddings=CONTEXT)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half().float())
    job = ExportJob(
        folder / "checkpoint",
        folder / "tiny",
        "tiny",
        format="coreml",
        target="coreml",
        scheme="fp16",
        quality_tokens=0,
    )
    bundle = export(job, SilentProgress())

    def reference(ids: list[int]) -> Logits:
        with torch.no_grad():
            logits: Logits = model(torch.tensor([ids])).logits[0].numpy()
        return logits

    with core_ml_in_numpy(folder / "home", rounded=False):
        engine = open_engine(bundle, "coreml")
        yield Case(
            engine=engine,
            reopen=lambda: open_engine(bundle, "coreml"),
            reference=reference,
            same=_same_rows,
            ids=np.random.default_rng(5).integers(0, VOCAB_SIZE, CONTEXT).tolist(),
        )
        engine.close()


def _same_rows(found: Logits, wanted: Logits) -> bool:
    """Rotations in float16 move the logits of a tiny random model by 0.3 % of a row's size."""
    error = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return bool(error.max() < 0.03)


def _same_distribution(found: Logits, wanted: Logits) -> bool:
    """llama.cpp rounds activations to 8 bits, by other kernels for other batch sizes: single
    logits of one model move by 0.5 with the way that a text is cut, the distribution hardly."""
    log_found, log_wanted = _log_softmax(found), _log_softmax(wanted)
    divergence = (np.exp(log_wanted) * (log_wanted - log_found)).sum(axis=1)
    top = wanted.argmax(axis=1)
    lead = found.max(axis=1) - found[np.arange(len(found)), top]
    return bool(divergence.max() < 0.06 and lead.max() < 0.5)


def _log_softmax(logits: Logits) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def check_next(case: Case, state: DecodeState, ids: list[int]) -> None:
    """`ids` appended to `state` must give the logits of a recompute of everything."""
    before = list(state.tokens)
    found = state.extend(ids)
    wanted = case.reference(before + ids)[-1:]
    assert found.shape == wanted.shape
    assert found.dtype == np.float32
    assert case.same(found, wanted)
    assert state.tokens == tuple(before + ids)


def test_one_piece(case: Case) -> None:
    state = case.engine.new_state()
    assert state.tokens == ()
    check_next(case, state, case.ids[:40])


def test_all_rows_of_one_piece(case: Case) -> None:
    ids = case.ids[:150]
    found = case.engine.new_state().extend(ids, logits="all")
    wanted = case.reference(ids)
    assert found.shape == wanted.shape == (150, case.engine.info.vocab_size)
    assert case.same(found, wanted)


def test_all_rows_are_the_last_rows_step_by_step(case: Case) -> None:
    stepwise = case.engine.new_state()
    stepwise.extend(case.ids[:10])
    pieces = stepwise.fork().extend(case.ids[10:18], logits="all")
    steps = [stepwise.extend([token]).copy()[0] for token in case.ids[10:18]]
    assert case.same(pieces, np.stack(steps))


@pytest.mark.parametrize("cuts", [(1, 39), (39, 1), (7, 8, 1, 24), (1,) * 40])
def test_pieces(case: Case, cuts: tuple[int, ...]) -> None:
    state = case.engine.new_state()
    wanted = case.reference(case.ids[:40])
    start = 0
    for cut in cuts:
        found = state.extend(np.array(case.ids[start : start + cut]))
        start += cut
        assert case.same(found, wanted[start - 1 : start])
    state.close()


def test_rewind_and_go_on_differently(case: Case) -> None:
    state = case.engine.new_state()
    state.extend(case.ids[:30])
    for length in (30, 12, 1, 0):
        state.rewind(length)
        assert state.tokens == tuple(case.ids[:length])
        check_next(case, state, case.ids[50:60])
        state.rewind(length)


@pytest.mark.parametrize("length", [-1, 6])
def test_rewind_out_of_range(case: Case, length: int) -> None:
    state = case.engine.new_state()
    state.extend(case.ids[:5])
    with pytest.raises(RequestError, match=f"Cannot rewind to {length}"):
        state.rewind(length)
    check_next(case, state, case.ids[5:7])


def test_fork_and_parent_go_their_own_ways(case: Case) -> None:
    parent = case.engine.new_state()
    parent.extend(case.ids[:20])
    child = parent.fork()
    assert child.tokens == parent.tokens
    check_next(case, child, case.ids[100:105])
    check_next(case, parent, case.ids[20:25])
    parent.close()
    child.rewind(22)
    check_next(case, child, case.ids[200:203])


def test_fork_of_nothing(case: Case) -> None:
    check_next(case, case.engine.new_state().fork(), case.ids[:5])


def test_growth_keeps_what_is_there(case: Case) -> None:
    state, other = case.engine.new_state(), case.engine.new_state()
    other.extend(case.ids[300:320])
    wanted = case.reference(case.ids)
    start = 0
    for end in (250, 257, 513, CONTEXT - 1, CONTEXT):
        found = state.extend(case.ids[start:end])
        assert case.same(found, wanted[end - 1 : end]), end
        start = end
    check_next(case, other, case.ids[320:325])
    state.close()


def test_past_the_context(case: Case) -> None:
    state = case.engine.new_state()
    state.extend(case.ids[:8])
    assert case.engine.info.context_length == CONTEXT
    with pytest.raises(ContextOverflow, match="701 tokens do not fit the context of 700") as caught:
        state.extend(case.ids[: CONTEXT - 7])
    assert (caught.value.tokens, caught.value.limit) == (CONTEXT + 1, CONTEXT)
    check_next(case, state, case.ids[8:11])


@pytest.mark.parametrize(
    "wrong", [[], [[1, 2]], [-1], [2**40], [1, -3], ["a"], [1.5], [True], [2**70], [[1], [2, 3]]]
)
def test_tokens_that_are_none(case: Case, wrong: Any) -> None:
    state = case.engine.new_state()
    state.extend(case.ids[:8])
    with pytest.raises(RequestError):
        state.extend(wrong)
    check_next(case, state, case.ids[8:11])


def test_first_id_past_the_vocabulary(case: Case) -> None:
    state = case.engine.new_state()
    vocab = case.engine.info.vocab_size
    state.extend([vocab - 1])
    with pytest.raises(RequestError, match=f"{vocab} is outside the vocabulary of {vocab}"):
        state.extend([0, vocab])


def test_rows_that_are_neither(case: Case) -> None:
    state = case.engine.new_state()
    with pytest.raises(InvalidOption, match="'first'"):
        state.extend([1], logits="first")  # type: ignore[arg-type]
    assert state.tokens == ()


def test_save_and_restore_in_a_new_engine(case: Case, tmp_path: Path) -> None:
    saved = case.engine.new_state()
    saved.extend(case.ids[:30])
    path = tmp_path / "a.sequence"
    saved.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.sequence"]
    check_next(case, saved, case.ids[60:62])
    engine = case.reopen()
    restored = engine.new_state()
    restored.extend(case.ids[400:420])
    restored.restore(path)
    assert restored.tokens == tuple(case.ids[:30])
    check_next(case, restored, case.ids[30:35])
    restored.close()
    engine.close()


def test_restore_more_than_the_cache_has_room_for(case: Case, tmp_path: Path) -> None:
    saved = case.engine.new_state()
    saved.extend(case.ids[:300])
    saved.save(tmp_path / "long")
    saved.close()
    engine = case.reopen()
    restored = engine.new_state()
    restored.restore(tmp_path / "long")
    check_next(case, restored, case.ids[300:302])
    restored.close()
    engine.close()


def test_save_and_restore_nothing(case: Case, tmp_path: Path) -> None:
    case.engine.new_state().save(tmp_path / "empty")
    state = case.engine.new_state()
    state.extend(case.ids[:4])
    state.restore(tmp_path / "empty")
    assert state.tokens == ()
    check_next(case, state, case.ids[4:8])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:40],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"x" + data[1:],
        lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:],
        lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
    ],
)
def test_restore_a_damaged_file(
    case: Case, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    state = case.engine.new_state()
    state.extend(case.ids[:12])
    path = tmp_path / "saved"
    state.save(path)
    path.write_bytes(damage(path.read_bytes()))
    state.extend(case.ids[12:14])
    with pytest.raises(RequestError, match="saved"):
        state.restore(path)
    check_next(case, state, case.ids[14:16])
    state.close()


def test_restore_a_file_that_is_not_there(case: Case, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"nowhere cannot be read: No such file"):
        case.engine.new_state().restore(tmp_path / "nowhere")


def test_closed_sequence(case: Case, tmp_path: Path) -> None:
    state = case.engine.new_state()
    state.extend(case.ids[:4])
    state.close()
    state.close()
    for use in (
        lambda: state.extend([1]),
        lambda: state.rewind(0),
        lambda: state.fork(),
        lambda: state.save(tmp_path / "x"),
        lambda: state.restore(tmp_path / "x"),
    ):
        with pytest.raises(EngineError, match="closed"):
            use()


def test_closed_engine(case: Case) -> None:
    engine = case.reopen()
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="engine is closed"):
        engine.new_state()


@pytest.mark.parametrize("seed", range(3))
def test_interleaved_sequences(case: Case, seed: int) -> None:
    rng = np.random.default_rng(seed)
    alive: list[DecodeState] = [case.engine.new_state()]
    mirror: list[list[int]] = [[]]
    for _ in range(30):
        at = int(rng.integers(len(alive)))
        state, ids = alive[at], mirror[at]
        action = rng.choice(["extend", "extend", "extend", "rewind", "fork", "new", "close"])
        if action == "extend":
            start = int(rng.integers(600))
            new = case.ids[start : start + int(rng.integers(1, 9))]
            mode = "all" if rng.random() < 0.3 else "last"
            found = state.extend(new, logits=mode)
            ids += new
            assert case.same(found, case.reference(ids)[-len(found) :])
        elif action == "rewind":
            length = int(rng.integers(len(ids) + 1))
            state.rewind(length)
            del ids[length:]
        elif action == "fork":
            alive.append(state.fork())
            mirror.append(list(ids))
        elif action == "new":
            alive.append(case.engine.new_state())
            mirror.append([])
        elif len(alive) > 1:
            state.close()
            del alive[at], mirror[at]
        assert [list(one.tokens) for one in alive] == mirror
    for state in alive:
        check_next(case, state, case.ids[:2])
        state.close()


def test_sequences_on_several_threads(case: Case) -> None:
    found: dict[int, Logits] = {}

    def run(number: int) -> None:
        state = case.engine.new_state()
        for token in case.ids[number : number + 12]:
            last = state.extend([token])
        found[number] = last.copy()
        state.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        wanted = case.reference(case.ids[number : number + 12])[-1:]
        assert case.same(found[number], wanted)


_TEXT = "\n".join(
    f"{number} times {number + 3} is {number * (number + 3)}, and rivers flow from the "
    "mountains to the sea, past towns where people trade fish for cloth."
    for number in range(60)
)
