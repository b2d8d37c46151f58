"""Client libraries in environments of their own, made once and kept for the next run.

Their requirements contradict each other, and those of this project.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

_HOME = Path(os.environ.get("EDGESDK_TEST_CLIENTS") or Path.home() / ".cache/edgesdk-test-clients")
_SECONDS = 1_800


def python_with(*requirements: str) -> Path:
    """The interpreter of an environment that has these packages.

    Raises:
        CalledProcessError: they cannot be installed.
    """
    name = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()[:16]
    folder, done = _HOME / name, _HOME / f"{name}.done"
    python = folder / "bin" / "python"
    _HOME.mkdir(parents=True, exist_ok=True)
    with FileLock(_HOME / f"{name}.lock"):
        if done.exists():
            return python
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "-q", *requirements]
        subprocess.run(install, check=True, timeout=_SECONDS)
        done.write_text("\n".join(requirements))
    return python
