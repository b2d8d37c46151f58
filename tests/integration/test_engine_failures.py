"""Engines on models that are damaged, and when the native code below them fails."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from bare_llama import BareLlama
from tiny_onnx_bundle import reference_logits, tiny_weights, write_tiny_bundle

from edgesdk.bundle.opening import open_bundle
from edgesdk.engines.base import Engine
from edgesdk.engines.gguf.engine import fingerprint
from edgesdk.engines.gguf.library import load_library
from edgesdk.engines.registry import open_engine
from edgesdk.errors import DamagedBundle, EngineError, RequestError

pytestmark = pytest.mark.integration


def test_onnxruntime_fails_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = open_engine(write_tiny_bundle(tmp_path / "b"), threads=1).new_state()
    ids = list(range(40))
    state.extend(ids[:9])
    run = ort.InferenceSession.run_with_iobinding

    def run_and_fail(*args: Any) -> None:
        run(*args)
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(ort.InferenceSession, "run_with_iobinding", run_and_fail)
        with pytest.raises(EngineError, match="2 tokens after 9: out of luck"):
            state.extend([60, 61])
    assert state.tokens == tuple(ids[:9])
    wanted = reference_logits(tiny_weights(), ids)
    np.testing.assert_allclose(state.extend(ids[9:], logits="all"), wanted[9:], atol=2e-3)


def test_no_memory_for_a_longer_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = open_engine(write_tiny_bundle(tmp_path / "b"), threads=1).new_state()
    ids = np.arange(300) % 60
    state.extend(ids[:250])

    def no_memory(*_: Any) -> None:
        raise MemoryError("no 64 MiB")

    with monkeypatch.context() as patch:
        patch.setattr("edgesdk.engines.onnx.kv_cache.np.zeros", no_memory)
        with pytest.raises(EngineError, match="no 64 MiB"):
            state.extend(ids[250:])
    wanted = reference_logits(tiny_weights(), ids.tolist())
    np.testing.assert_allclose(state.extend(ids[250:])[0], wanted[-1], atol=2e-3)


def test_graph_that_is_no_model(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    graph = bundle.file("model.onnx")
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    with pytest.raises(EngineError, match=r"cannot load .*model\.onnx.*edgesdk verify"):
        open_engine(open_bundle(tmp_path / "b"))


def test_graph_that_contradicts_its_manifest(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", vocab_said=65)
    with pytest.raises(DamagedBundle, match=r"output 'logits' has shape .*64\], not .*65\]"):
        open_engine(bundle)


def test_saved_by_another_model(tmp_path: Path) -> None:
    first = open_engine(write_tiny_bundle(tmp_path / "a", seed=1), threads=1).new_state()
    second = open_engine(write_tiny_bundle(tmp_path / "b", seed=2), threads=1).new_state()
    first.extend([1, 2, 3])
    first.save(tmp_path / "saved")
    second.extend([4, 5])
    with pytest.raises(RequestError, match="another model"):
        second.restore(tmp_path / "saved")
    assert second.tokens == (4, 5)


@pytest.fixture(scope="module")
def gguf(smollm2_gguf: Path) -> Iterator[Engine]:
    engine = open_engine(smollm2_gguf, threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def bare(smollm2_gguf: Path) -> Iterator[BareLlama]:
    bare = BareLlama(smollm2_gguf)
    yield bare
    bare.close()


def _close(found: Any, wanted: Any) -> bool:
    # 8-bit activations: see the contract tests.
    return bool(np.abs(found - wanted).max() < 1.5 and np.abs(found - wanted).mean() < 0.3)


def test_saved_by_the_other_engine(gguf: Engine, tmp_path: Path) -> None:
    onnx = open_engine(write_tiny_bundle(tmp_path / "a"), threads=1).new_state()
    onnx.extend([1, 2, 3])
    onnx.save(tmp_path / "saved")
    with pytest.raises(RequestError, match="another engine: onnx, not gguf"):
        gguf.new_state().restore(tmp_path / "saved")


def test_llama_cpp_fails_in_the_middle(
    gguf: Engine, bare: BareLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_cpp import llama_cpp as api

    state = gguf.new_state()
    ids = bare.encode("The river rises in the hills and falls into the sea.")
    state.extend(ids[:5])
    decode = api.llama_decode

    def decode_and_fail(context: Any, batch: Any) -> int:
        decode(context, batch)
        return -3

    with monkeypatch.context() as patch:
        patch.setattr(api, "llama_decode", decode_and_fail)
        with pytest.raises(EngineError, match=r"status -3"):
            state.extend([60, 61])
    assert state.tokens == tuple(ids[:5])
    assert _close(state.extend(ids[5:], logits="all"), bare.logits(ids)[5:])


def test_a_cache_that_cannot_go_back(
    gguf: Engine, bare: BareLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recurrent models refuse to forget a part; what stays has to be computed again."""
    from llama_cpp import llama_cpp as api

    remove = api.llama_memory_seq_rm
    monkeypatch.setattr(
        api, "llama_memory_seq_rm", lambda m, s, start, end: start == 0 and remove(m, s, 0, end)
    )
    state = gguf.new_state()
    ids = bare.encode("The river rises in the hills and falls into the sea.")
    state.extend([*ids[:6], 77, 78])
    state.rewind(6)
    assert state.tokens == tuple(ids[:6])
    assert _close(state.extend(ids[6:], logits="all"), bare.logits(ids)[6:])
    state.close()


def test_sequence_ids_come_back(gguf: Engine) -> None:
    gc.collect()
    states = [gguf.new_state() for _ in range(64)]
    with pytest.raises(EngineError, match="64 sequences of this model are open"):
        gguf.new_state()
    states.pop().close()
    states.append(gguf.new_state())
    with pytest.raises(EngineError, match="Close one of them"):
        states[0].fork()
    states.clear()
    gc.collect()
    forgotten = gguf.new_state()
    forgotten.extend([1, 2, 3])
    forgotten.close()


def test_an_id_given_back_is_empty(gguf: Engine, bare: BareLlama) -> None:
    ids = bare.encode("Rain falls on the town.")
    for keep in (False, True):
        state = gguf.new_state()
        assert _close(state.extend(ids, logits="all"), bare.logits(ids))
        if keep:
            state.close()
        del state


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a GGUF file"),
        (b"PK\3\4" + b"x" * 60, "is not a GGUF file: it starts with b'PK"),
        (b"GGUF\3\0\0\0", "header of .* is damaged"),
        (b"GGUF\3\0\0\0" + b"\xff" * 16, "header of .* is damaged"),
        (b"GGUF\3\0\0\0" + b"\0" * 16, "cannot load"),
    ],
)
def test_what_is_no_gguf(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=words):
        open_engine(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be read: No such file"):
        open_engine(tmp_path / "x.gguf")


def test_a_gguf_cut_off(smollm2_gguf: Path, tmp_path: Path) -> None:
    whole = smollm2_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:1_000_000])
    with pytest.raises(EngineError, match=r"cut\.gguf"):
        open_engine(path)
    path.write_bytes(whole[:-1000])
    with pytest.raises(EngineError, match=r"cut\.gguf.*(bounds|corrupted)"):
        open_engine(path)


def test_llama_cpps_reason_is_heard_though_others_listened_in_between(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    """Its log has one listener in a process, and `llama_cpp.Llama` becomes it."""
    api = load_library().api
    other = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(other, None)
    path = tmp_path / "cut.gguf"
    path.write_bytes(smollm2_gguf.read_bytes()[:-1000])
    with pytest.raises(EngineError, match=r"cut\.gguf.*(bounds|corrupted)"):
        open_engine(path)


def test_a_gguf_with_a_token_twice(smollm2_gguf: Path, tmp_path: Path) -> None:
    """llama.cpp would abort the process."""
    text = "Ġbenevol".encode()
    whole = smollm2_gguf.read_bytes().replace(text, b"\0" + text[1:], 1)
    whole = whole.replace("Ġriver".encode(), "Ġrhyme".encode(), 1)
    path = tmp_path / "twice.gguf"
    path.write_bytes(whole)
    with pytest.raises(EngineError, match=r"has the token b'.*rhyme' twice"):
        open_engine(path)


def test_fingerprints(tmp_path: Path) -> None:
    path = tmp_path / "x"
    prints = set()
    for content in (b"", b"a", b"ab", b"a" * 300_000, b"a" * 299_999 + b"b"):
        path.write_bytes(content)
        assert fingerprint(path) == fingerprint(path)
        prints.add(fingerprint(path))
    assert len(prints) == 5
