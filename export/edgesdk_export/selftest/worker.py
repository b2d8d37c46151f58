"""Call a function in a process of its own: what ends that process leaves the exporter alone.

llama.cpp ends its process where a file asks for what it cannot do, and a large model's memory comes
back only when a process ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edgesdk.errors import ExportError
from edgesdk_export.failure_cause import cause_of

_Result = TypeVar("_Result")


def call_in_process(
    function: Callable[..., _Result], *arguments: object, doing: str, hint: str | None = None
) -> _Result:
    """What a function of a module returns, called in a new process with this one's import path.

    Args:
        arguments: can be pickled, as the result can.
        doing: what the process does, for the message: "opening model.gguf".
        hint: of the error.

    Raises:
        ExportError: the process ended before the function did, or the function raised an error;
            the message has the cause that it gave.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        answer = Path(folder) / "answer"
        ran = subprocess.run(
            [sys.executable, "-m", __name__, str(answer)],
            input=pickle.dumps((function, arguments)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
                # ggml would start a debugger on its own process.
                "GGML_NO_BACKTRACE": "1",
            },
            check=False,
        )
        if ran.returncode == 0 and answer.is_file():
            result: _Result = pickle.loads(answer.read_bytes())  # written by this very module
            return result
    cause = cause_of(ran.stderr.decode("utf-8", "replace"))
    raise ExportError(f"{doing} {_end(ran.returncode)}: {cause}.", hint=hint)


def _end(code: int) -> str:
    if code >= 0:
        return "failed"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"ended the process ({name})"


def _main() -> None:
    function, arguments = pickle.load(sys.stdin.buffer)
    result = function(*arguments)
    Path(sys.argv[1]).write_bytes(pickle.dumps(result, pickle.HIGHEST_PROTOCOL))


if __name__ == "__main__":
    _main()
