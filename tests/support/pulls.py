"""What is pulled in tests, and how: by the command line, in a process of its own."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from edgesdk.store import Store

BODY = random.Random(7).randbytes(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


def start_pull(store: Store, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    path = {"PYTHONPATH": os.pathsep.join(sys.path), "EDGESDK_HOME": str(store.root)}
    return subprocess.Popen(
        [sys.executable, "-m", "edgesdk", "pull", *arguments],
        env=os.environ | path | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell has a background job ignore Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


def partial_size(store: Store) -> int:
    return sum(path.stat().st_size for path in store.root.rglob("*.partial"))
