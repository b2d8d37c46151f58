"""Run the command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

MAIN = [sys.executable, "-c", "from edgesdk.cli import main; main()"]


def environment(**more: str) -> dict[str, str]:
    """This process's environment, with its import path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}


def edgesdk(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run `edgesdk` with these arguments to its end."""
    return subprocess.run(
        [*MAIN, *arguments], input=stdin, capture_output=True, env=environment(), timeout=300
    )
