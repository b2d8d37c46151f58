"""The weights of a model that llama.cpp has loaded, which its adapters share."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

from edgesdk.engines.gguf.library import LlamaLibrary
from edgesdk.errors import EngineError
from edgesdk.system.forks import ForkGuard


class NativeWeights:
    """Owns a llama_model pointer, which is freed when nobody holds this object any more.

    Args:
        pointer: of the llama_model.
    """

    def __init__(self, library: LlamaLibrary, pointer: Any) -> None:
        self.pointer = pointer
        self.fork_guard = ForkGuard("The model", EngineError)
        self._library = library
        weakref.finalize(self, _free, library.api.llama_model_free, pointer, self.fork_guard)

    def load_adapter(self, path: Path) -> NativeAdapter:
        """Load the low-rank weights in a file.

        Raises:
            EngineError: llama.cpp cannot load them, or they do not fit this model.
        """
        self._library.listen()
        pointer = self._library.api.llama_adapter_lora_init(self.pointer, os.fsencode(path))
        if not pointer:
            said = self._library.take_errors() or "it gives no reason"
            raise EngineError(
                f"llama.cpp cannot load the adapter {path}: {said}.",
                hint="Export the adapter again.",
            )
        return NativeAdapter(self._library, pointer, self)


class NativeAdapter:
    """Owns a llama_adapter_lora pointer, as `NativeWeights` does; `weights` are the model's."""

    def __init__(self, library: LlamaLibrary, pointer: Any, weights: NativeWeights) -> None:
        self.pointer = pointer
        # Freed after the adapter, which lies among the model's own.
        self.weights = weights
        free = library.api.llama_adapter_lora_free
        weakref.finalize(self, _free, free, pointer, weights.fork_guard)


def _free(free: Any, pointer: Any, fork_guard: ForkGuard) -> None:
    # llama.cpp would wait for threads that a fork has not; the process takes its copy along.
    if not fork_guard.crossed:
        free(pointer)
