"""How a GGUF model is loaded: its header is read once, and kernels for matrix tiles stay unused."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import pytest
from support.other_process import run_python

import edgesdk
from edgesdk.engines.gguf.footprint import footprint
from edgesdk.engines.gguf.library import load_library
from edgesdk.errors import EngineError
from edgesdk.system.gguf_header import GgufHeader, read_gguf_header

pytestmark = pytest.mark.integration

ANSWER = """
import json, sys, edgesdk
with edgesdk.load(sys.argv[1], threads=1) as model:
    print(json.dumps(model.respond("What is the capital of France?", max_tokens=8).text))
"""


def test_weights_stay_as_they_are_only_where_tiles_are_compiled_in() -> None:
    tiles = "AMX_INT8 = 1" in llama_cpp.llama_print_system_info().decode()
    assert load_library().extra_buffers != tiles


def test_a_header_is_read_once_for_each_load(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(path: Path) -> GgufHeader:
        read.append(path)
        return read_gguf_header(path)

    monkeypatch.setattr("edgesdk.engines.gguf.header_checks.read_gguf_header", counted)
    with edgesdk.load(smollm2_gguf, context=64):
        assert read == [smollm2_gguf]
    with edgesdk.load(smollm2_gguf, context=64):
        assert len(read) == 2, "the file may be another one by now"
    changing = tmp_path / "model.gguf"
    changing.write_bytes(smollm2_gguf.read_bytes())
    assert footprint(changing).context_length > 0
    changing.write_bytes(b"GGUF")
    with pytest.raises(EngineError):
        footprint(changing)


def test_a_gguf_answers_on_this_processor(smollm2_gguf) -> None:
    """In a process of its own: kernels that were compiled wrongly kill theirs."""
    assert run_python(ANSWER, str(smollm2_gguf))


_LOADED_AT_ONCE = """
import json, threading
from edgesdk.engines.gguf.library import load_library
together, found = threading.Barrier(8), []
def load():
    together.wait()
    found.append(load_library())
threads = [threading.Thread(target=load) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(len({id(library) for library in found})))
"""


def test_threads_that_load_it_at_once_share_one() -> None:
    """A second log callback would be freed while llama.cpp still calls it."""
    assert run_python(_LOADED_AT_ONCE) == 1
