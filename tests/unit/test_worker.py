"""A function called in another process: its result, or why there is none."""

from __future__ import annotations

import signal
import sys

import pytest
from edgesdk_export.selftest.worker import call_in_process

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
