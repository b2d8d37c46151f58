"""Python code in a process of its own, with this one's import path."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any


def run_python(code: str, *arguments: str, timeout: float = 300) -> Any:
    """Run `code` with `arguments` in sys.argv[1:]; its last line is read as JSON, since
    libraries print lines of their own."""
    done = _run(code, *arguments, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def run_killed_python(code: str, *arguments: str, timeout: float = 300) -> None:
    """Run `code`, which must end by killing its own process."""
    done = _run(code, *arguments, timeout=timeout)
    assert done.returncode == -signal.SIGKILL, done.stderr


def _run(code: str, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout,
        check=False,
    )
