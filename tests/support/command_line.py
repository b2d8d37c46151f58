"""Run the command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MAIN = [sys.executable, "-c", "from edgesdk.cli import main; main()"]


def environment(**more: str) -> dict[str, str]:
    """This process's environment, with its import path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}


def edgesdk(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run `edgesdk` with these arguments to its end."""
    return subprocess.run(
        [*MAIN, *arguments], input=stdin, capture_output=True, env=environment(), timeout=300
    )


def edgesdk_in(*arguments: str, home: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `edgesdk` on the store in `home`; it must end with the exit code `expect`."""
    more = {"EDGESDK_HOME": str(home), "COLUMNS": "200"}
    done = subprocess.run(
        [*MAIN, *arguments], capture_output=True, text=True, env=environment(**more), check=False
    )
    assert done.returncode == expect, done.stderr
    return done
