"""ggml's quantizers, out of the library that comes with llama-cpp-python."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from functools import cache
from pathlib import Path

from edgesdk.errors import MissingExtra

_FILE = {"win32": "ggml-base.dll", "darwin": "libggml-base.dylib"}.get(
    sys.platform, "libggml-base.so"
)


@cache
def ggml_library() -> ctypes.CDLL:
    """The library, with the signatures of what is called here (ggml's include/ggml.h).

    llama_cpp itself is not imported: it would load every backend. Calls release the GIL.

    Raises:
        MissingExtra: llama-cpp-python is not installed, or came without the library.
    """
    path = _library_path()
    if path is None:
        raise MissingExtra("llama-cpp-python", extra="gguf", needed_for="Quantizing to ggml types")
    library = ctypes.CDLL(str(path))
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int,
        pointer,
        pointer,
        count,
        count,
        count,
        pointer,
    )
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = (ctypes.c_int, pointer, ctypes.c_size_t)
    return library


def _library_path() -> Path | None:
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "lib" / _FILE
    return path if path.is_file() else None
