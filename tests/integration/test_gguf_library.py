"""llama.cpp's kernels for matrix tiles (AMX): where the library has them, they are not used."""

from __future__ import annotations

import llama_cpp
import pytest
from support.other_process import run_python

from edgesdk.engines.gguf.library import load_library

pytestmark = pytest.mark.integration

ANSWER = """
import json, sys, edgesdk
with edgesdk.load(sys.argv[1], threads=1) as model:
    print(json.dumps(model.respond("What is the capital of France?", max_tokens=8).text))
"""


def test_weights_stay_as_they_are_only_where_tiles_are_compiled_in() -> None:
    tiles = "AMX_INT8 = 1" in llama_cpp.llama_print_system_info().decode()
    assert load_library().extra_buffers != tiles


def test_a_gguf_answers_on_this_processor(smollm2_gguf) -> None:
    """In a process of its own: kernels that were compiled wrongly kill theirs."""
    assert run_python(ANSWER, str(smollm2_gguf))
