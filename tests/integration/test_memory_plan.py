"""Planned memory against what a process really takes at its worst moment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.exported import Exported
from support.other_process import run_python

import edgesdk
from edgesdk.bundle.opening import Bundle
from edgesdk.errors import InvalidOption, NotEnoughMemory
from edgesdk.loading import plan

FILL = """
import json, re, sys
from pathlib import Path
import edgesdk
with edgesdk.load(Path(sys.argv[1]), threads=2, check_memory=False) as model:
    engine = model.runtime.engine
    sequence, context = engine.new_state(), int(sys.argv[2])
    ids = [100 + (7 * n) % 10_000 for n in range(context)]
    for start in range(0, context - 1, 512):
        sequence.extend(ids[start : min(start + 512, context - 1)])
    sequence.extend(ids[-1:])
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
"""

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc"),
]


def _check(place: Path, context: int) -> None:
    peak = run_python(FILL, str(place), str(context))
    planned = plan(place, context=context).need.total
    assert planned == pytest.approx(peak, rel=0.15), f"{planned / peak - 1:+.1%}"


@pytest.mark.nightly
@pytest.mark.parametrize("context", [300, 1_100])
def test_smollm2_onnx(smollm2_int4: Bundle, context: int) -> None:
    _check(smollm2_int4.path, context)


@pytest.mark.nightly
def test_smollm2_onnx_in_8_bits(smollm2_int8: Bundle) -> None:
    _check(smollm2_int8.path, 600)


@pytest.mark.nightly
@pytest.mark.parametrize("context", [300, 1_100])
def test_smollm2_gguf(smollm2_gguf: Path, context: int) -> None:
    pytest.importorskip("llama_cpp")
    _check(smollm2_gguf, context)


@pytest.mark.nightly
def test_qwen_onnx(qwen_coder_int4: Exported) -> None:
    _check(qwen_coder_int4.path, 300)


@pytest.mark.nightly
def test_qwen_gguf(qwen_coder_gguf: Path) -> None:
    pytest.importorskip("llama_cpp")
    _check(qwen_coder_gguf, 300)


def test_load_refuses_what_cannot_fit(
    smollm2_int4: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = smollm2_int4.path
    needed = plan(place, context=4_096).need
    monkeypatch.setattr(
        "edgesdk.system.plan.available_bytes", lambda: needed.total - needed.process - 1
    )
    with pytest.raises(NotEnoughMemory, match="context=") as caught:
        edgesdk.load(place, context=4_096, threads=1)
    assert caught.value.needed == caught.value.available + 1
    found = plan(place, context=4_096)
    assert not found.fits
    assert 0 < found.longest_context < 4_096
    edgesdk.load(place, context=found.longest_context, threads=1).close()
    edgesdk.load(place, threads=1).close()
    edgesdk.load(place, context=4_096, threads=1, check_memory=False).close()


def test_a_loaded_model_plans_for_itself(smollm2_int4: Bundle) -> None:
    with edgesdk.load(smollm2_int4.path, threads=1) as model:
        found = model.plan(context=1_000)
        assert found.need == plan(smollm2_int4.path, context=1_000).need
        assert found.fits
        with pytest.raises(InvalidOption, match="8,192"):
            model.plan(context=8_193)
