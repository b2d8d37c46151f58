"""Tell whether two exports would write the same bundle."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import edgesdk

# Whatever takes part in the values of weights, or writes them.
_LIBRARIES = ("numpy", "onnx_ir", "onnxruntime", "gguf", "llama_cpp_python", "tokenizers")


def inputs_hash(checkpoint: Path, asked: Mapping[str, str | int | None]) -> str:
    """Hash all that decides what an export writes, as SHA-256 in hex.

    A checkpoint's files are taken to be the same while their places, sizes and times are: reading
    them through would take as long as some exports do.

    Args:
        checkpoint: a folder or a file.
        asked: all of the request that decides anything.
    """
    files = sorted(checkpoint.iterdir()) if checkpoint.is_dir() else [checkpoint]
    known = {
        "asked": dict(asked),
        "files": [_state(path) for path in files if path.is_file()],
        "versions": {
            "edgesdk": edgesdk.__version__,
            # The built-in texts are its documentation.
            "python": platform.python_version(),
            **_versions(),
        },
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _state(path: Path) -> list[str | int]:
    found = path.stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
