"""Loads llama.cpp quietly through llama-cpp-python, and can stop a batch that runs."""

from __future__ import annotations

import collections
import ctypes
import functools
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgesdk.errors import MissingExtra

_LOG = logging.getLogger("edgesdk.llama_cpp")
_AMX = b"AMX_INT8 = 1"
_BLOCK_BYTES = 4096  # a ggml_tensor has a few hundred
_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR in ggml.h


@dataclass(frozen=True)
class LlamaLibrary:
    """The loaded library.

    Attributes:
        api: the module `llama_cpp.llama_cpp`: its functions, by their C names.
        version: of the Python package; it fixes the llama.cpp that was built into it.
        extra_buffers: whether weights may be laid out anew for the processor when they are loaded.
        log_callback: kept here because llama.cpp holds only its address.
    """

    api: Any
    version: str
    extra_buffers: bool
    log_callback: Any
    _errors: collections.deque[str]

    def listen(self) -> None:
        """Have llama.cpp's log come here; it has one listener, and others may have taken over."""
        self.api.llama_log_set(self.log_callback, None)
        self._errors.clear()

    def take_errors(self) -> str:
        """What llama.cpp has complained of since the last call, as one line; may be empty."""
        lines = []
        while self._errors:
            lines.append(self._errors.popleft())
        return "; ".join(lines)

    def is_recurrent(self, model: Any) -> bool:
        """Whether some layers of a llama_model keep a state that cannot be rewound."""
        api = self.api
        return bool(api.llama_model_is_recurrent(model) or api.llama_model_is_hybrid(model))


_LOADING = threading.Lock()


def load_library() -> LlamaLibrary:
    """Import llama.cpp, once. Its log goes to the logger "edgesdk.llama_cpp", at level DEBUG.

    Raises:
        MissingExtra: llama-cpp-python is not installed.
    """
    # Two threads that load it at once would each set a log callback, of which one is then freed.
    with _LOADING:
        return _library()


@functools.lru_cache(maxsize=1)
def _library() -> LlamaLibrary:
    try:
        import llama_cpp
        from llama_cpp import llama_cpp as api
    except ImportError as error:
        raise MissingExtra(
            "llama-cpp-python", extra="gguf", needed_for="Running a GGUF model"
        ) from error
    errors: collections.deque[str] = collections.deque(maxlen=4)

    def log(level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == _ERROR_LEVEL and line:
            errors.append(line)
        if _LOG.isEnabledFor(logging.DEBUG):
            _LOG.debug("%s", line)

    callback = api.llama_log_callback(log)
    api.llama_log_set(callback, None)
    api.llama_backend_init()
    # GCC 12 leaves most of a tile configuration out of llama.cpp's AMX kernels, and the first
    # matrix product kills the process. Which compiler built the library cannot be asked, but
    # weights that stay as they are never meet these kernels.
    amx = _AMX in api.llama_print_system_info()
    return LlamaLibrary(api, str(llama_cpp.__version__), not amx, callback, errors)


class AbortFlag:
    """Ends a batch of llama.cpp while it is computed. It is not set at first.

    llama.cpp asks its abort callback after each node of the graph, about a thousand times in a
    step. A Python function would take the interpreter lock each time, so the callback is one of
    ggml's own: `bool ggml_is_empty(const struct ggml_tensor *)` has the type that is asked for,
    and is true where a dimension of the tensor is 0. It is given a block of memory for a tensor,
    with all bytes set or all bytes zero, so that nothing depends on where in it the dimensions
    lie. Where this llama.cpp has no such function, setting the flag does nothing.
    """

    def __init__(self, library: LlamaLibrary) -> None:
        self._library = library
        self._block = np.full(_BLOCK_BYTES, 0xFF, np.uint8)
        self._function = _is_empty(library.api)

    def install(self, context_params: Any, model: Any) -> None:
        """Let a context with these parameters look at the flag.

        Recurrent models do without: their state cannot go back to where a batch began.
        """
        if self._function is None or self._library.is_recurrent(model):
            return
        context_params.abort_callback = ctypes.cast(
            self._function, self._library.api.ggml_abort_callback
        )
        context_params.abort_callback_data = ctypes.c_void_p(self._block.ctypes.data)

    def set(self) -> None:
        """End the batch that runs, or the next one."""
        self._block[:] = 0

    def clear(self) -> None:
        """Let batches run."""
        self._block[:] = 0xFF


def _is_empty(api: Any) -> Any | None:
    try:
        from llama_cpp._ctypes_extensions import load_shared_library

        ggml = load_shared_library("ggml-base", Path(api.__file__).parent / "lib")
        return ggml.ggml_is_empty
    except (ImportError, OSError, RuntimeError, AttributeError):
        # Another build of llama-cpp-python may hide it; a stop then waits for the batch to end.
        return None
