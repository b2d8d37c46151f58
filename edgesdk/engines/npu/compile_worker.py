"""Loads a model on a device in a process of its own, so that it is compiled and lies in the cache.

The process says on its standard output how far it is, and ends when its standard input does: then
the one that began it is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgesdk.bundle.opening import open_bundle
from edgesdk.engines.registry import open_engine
from edgesdk.errors import EdgeError

# Marks the lines that are ours: libraries print lines of their own.
MARK = "edgesdk-compile:"
# What the process runs; its arguments are the import path and the order, as JSON.
CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from edgesdk.engines.npu.compile_worker import compile_order
compile_order(sys.argv[2])
"""


@dataclass(frozen=True)
class CompileOrder:
    """What is to be loaded, as `edgesdk.engines.registry.open_engine` takes it.

    Attributes:
        bundle: the folder.
    """

    bundle: str
    device: str
    threads: int
    context: int | None
    options: dict[str, Any]

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def compile_order(text: str) -> None:
    """Do what an order as JSON says, and end the process."""
    threading.Thread(target=_end_with_the_other, daemon=True).start()
    order = CompileOrder(**json.loads(text))
    try:
        open_engine(
            open_bundle(Path(order.bundle)),
            order.device,
            threads=order.threads,
            context=order.context,
            options=order.options,
            progress=lambda done, of: _say(done=done, of=of),
        ).close()
    except EdgeError as error:
        _say(error=str(error))
        raise SystemExit(1) from error


def _say(**what: object) -> None:
    sys.stdout.write(f"{MARK}{json.dumps(what)}\n")
    sys.stdout.flush()


def _end_with_the_other() -> None:
    # Not sys.stdin: a thread that waits in it makes Python abort at its end.
    while os.read(0, 1):
        pass
    os._exit(1)
