"""Run the command line: in a process of its own, or faster in this one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from edgesdk.cli import main

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


def edgesdk_here(
    *arguments: str, home: Path, expect: int = 0, stdin: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """As `edgesdk_in`, but in this process, which has everything imported already."""
    out, err, typed = io.StringIO(), io.StringIO(), io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
    status: object = None
    with (
        patch.dict(os.environ, EDGESDK_HOME=str(home), COLUMNS="200"),
        patch.object(sys, "stdin", typed),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main(arguments)
        except SystemExit as ended:
            status = ended.code
    assert status == expect, err.getvalue()
    return subprocess.CompletedProcess(arguments, expect, out.getvalue(), err.getvalue())
