"""The line in which a program says why it failed."""

from __future__ import annotations

import pytest
from edgesdk_export.failure_cause import cause_of

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


ADVICE = """\
Traceback (most recent call last):
  File "a.py", line 1, in <module>
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 1, in <module>
ValueError: The checkpoint has the type `x`, which Transformers does not know.

You can update Transformers with the command
pip install --upgrade transformers
"""
PIP = """\
Collecting torch==9
ERROR: Could not find a version that satisfies the requirement torch==9
ERROR: No matching distribution found for torch==9
[notice] A new release of pip is available
[notice] To update, run: pip install --upgrade pip
"""
LAST_WORDS = """\
a.py:1: UserWarning: an error: will follow
3 missing keys, such as a, b
"""
WARNED = """\
Traceback (most recent call last):
  File "x.py", line 1, in <module>
ValueError: architecture mamba is not supported.
  ^^^^^^
UserWarning: something else

"""


@pytest.mark.parametrize(
    ("stderr", "cause"),
    [
        (ABORT, "/src/llama-model.cpp:10: GGML_ASSERT(n_head % n_head_kv == 0) failed"),
        (LOADING, "llama_model_load: error loading model: unknown pre-tokenizer type: 'x'"),
        (TRACEBACK, "ModuleNotFoundError: No module named 'x'"),
        ("nothing of note\n\n", "nothing of note"),
        ("", "it gave no message"),
        ("\n ^^^^ \n", "it gave no message"),
        (ADVICE, "ValueError: The checkpoint has the type `x`, which Transformers does not know"),
        (PIP, "ERROR: Could not find a version that satisfies the requirement torch==9"),
        (LAST_WORDS, "3 missing keys, such as a, b"),
        (WARNED, "ValueError: architecture mamba is not supported"),
    ],
)
def test_the_cause_is_not_the_last_line(stderr, cause):
    assert cause_of(stderr) == cause
