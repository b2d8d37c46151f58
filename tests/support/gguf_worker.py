"""Loads each GGUF that a line of its input names, and lets it answer; says what came of it.

A process of its own, since llama.cpp may take it down.
"""

from __future__ import annotations

import json
import resource
import sys
import traceback
from pathlib import Path

import edgesdk
from edgesdk.errors import EdgeError

_ADDRESSES = 8 * 2**30


def _attempt(path: Path) -> tuple[str, str]:
    try:
        with edgesdk.load(path, threads=1, context=32) as model:
            model.complete("ab", max_tokens=2)
            model.respond("b", max_tokens=1)
    except EdgeError as error:
        return type(error).__name__, str(error)
    except Exception:
        return "other", traceback.format_exc()
    return "accepted", ""


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_attempt(Path(line.strip()))) + "\n")
        sys.stdout.flush()


main()
