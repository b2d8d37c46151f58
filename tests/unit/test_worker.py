"""A function called in another process: its result, or why there is none."""

from __future__ import annotations

import signal
import sys

import pytest
from edgesdk_export.selftest.worker import call_in_process, cause_of

from edgesdk.errors import ExportError


def test_the_result_comes_back():
    assert call_in_process(divmod, 17, 5, doing="Dividing") == (3, 2)


def test_an_error_is_named_with_its_cause():
    with pytest.raises(ExportError, match=r"Dividing failed: ZeroDivisionError: .*zero.* Try 1\."):
        call_in_process(divmod, 1, 0, doing="Dividing", hint="Try 1.")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are of POSIX")
@pytest.mark.parametrize("name", ["SIGABRT", "SIGSEGV", "SIGKILL"])
def test_a_process_that_dies_takes_nothing_down(name):
    with pytest.raises(ExportError, match=rf"Working ended the process \({name}\)"):
        call_in_process(signal.raise_signal, getattr(signal, name), doing="Working")


ABORT = """\
llama_model_loader: loaded meta data
/src/llama-model.cpp:10: GGML_ASSERT(n_head % n_head_kv == 0) failed
[New LWP 4]
#60 0x000055e in _start ()
[Inferior 1 (process 7960) detached]
"""
LOADING = """\
llama_model_load: error loading model: unknown pre-tokenizer type: 'x'
llama_model_load_from_file_impl: failed to load model
"""
TRACEBACK = """\
a warning: failed to be quiet
Traceback (most recent call last):
  File "x.py", line 1, in <module>
ModuleNotFoundError: No module named 'x'
Exception ignored in: <function f>
0 tests ran
"""


@pytest.mark.parametrize(
    ("stderr", "cause"),
    [
        (ABORT, "/src/llama-model.cpp:10: GGML_ASSERT(n_head % n_head_kv == 0) failed"),
        (LOADING, "llama_model_load: error loading model: unknown pre-tokenizer type: 'x'"),
        (TRACEBACK, "ModuleNotFoundError: No module named 'x'"),
        ("nothing of note\n\n", "nothing of note"),
        ("", "it gives no reason"),
    ],
)
def test_the_cause_is_not_the_last_line(stderr, cause):
    assert cause_of(stderr) == cause
