"""Peak memory on a receipt is of this process alone."""

from __future__ import annotations

import pytest
from support.other_process import run_python

from edgesdk.receipt import peak_memory_bytes

pytestmark = pytest.mark.e2e


def test_what_the_parent_took_does_not_count() -> None:
    ballast = b"x" * (300 * 2**20)
    own = peak_memory_bytes()
    assert own is None or own > len(ballast)
    code = "from edgesdk.receipt import peak_memory_bytes as peak; print(peak() or 0)"
    assert run_python(code) < len(ballast)
