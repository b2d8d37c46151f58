"""A flag that ends a batch of llama.cpp while it is computed.

llama.cpp asks its abort callback after each node of the graph, about a thousand times in a step. A
Python function would take the interpreter lock each time, so the callback is one of ggml's own:
`bool ggml_is_empty(const struct ggml_tensor *)` has the type that is asked for, and is true where
a dimension of the tensor is 0. It is given a block of memory for a tensor, with all bytes set or
all bytes zero, so that nothing depends on where in it the dimensions lie.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from edgesdk.engines.gguf.library import LlamaLibrary

_BLOCK_BYTES = 4096  # a ggml_tensor has a few hundred


class AbortFlag:
    """Down at first. Where this llama.cpp has no such function, raising it does nothing."""

    def __init__(self, library: LlamaLibrary) -> None:
        self._api = library.api
        self._block = np.full(_BLOCK_BYTES, 0xFF, np.uint8)
        self._function = _is_empty(library.api)

    def install(self, context_params: Any, model: Any) -> None:
        """Let a context with these parameters look at the flag.

        Recurrent models do without: their state cannot go back to where a batch began.
        """
        api = self._api
        forgetful = api.llama_model_is_recurrent(model) or api.llama_model_is_hybrid(model)
        if self._function is None or forgetful:
            return
        context_params.abort_callback = ctypes.cast(self._function, api.ggml_abort_callback)
        context_params.abort_callback_data = ctypes.c_void_p(self._block.ctypes.data)

    def raise_(self) -> None:
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
