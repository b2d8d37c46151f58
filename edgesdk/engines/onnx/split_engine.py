"""Computes prompts on one device and answers on another, where each is faster at its part.

Both have the model. The keys and values of a prompt go over through the host's memory.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from edgesdk.bundle.adapter import Adapter
from edgesdk.engines.base import EngineInfo, HiddenStates, Logits, Rows
from edgesdk.engines.onnx.decode_state import OnnxDecodeState
from edgesdk.engines.onnx.engine import OnnxEngine
from edgesdk.engines.saved_state import KvIdentity, StateMetadata
from edgesdk.errors import EngineError
from edgesdk.system.cancellation import CancellationToken

# Fewer tokens are not worth the way there and back.
MIN_PREFILL = 32


class SplitEngine:
    """Implements `edgesdk.engines.base.Engine` over two engines, which it closes.

    Args:
        prefill: computes calls for at least `MIN_PREFILL` tokens.
        decode: computes all others, and holds the states.

    Raises:
        EngineError: their KV caches are not of the same model and layout; neither is closed.
    """

    def __init__(self, prefill: OnnxEngine, decode: OnnxEngine) -> None:
        if prefill.kv_identity != decode.kv_identity:
            raise EngineError("These engines have KV caches of different models or layouts.")
        self._prefill = prefill
        self._decode = decode
        placement = replace(
            decode.info.placement,
            prefill=f"{prefill.info.placement.device} ({prefill.info.placement.processor})",
        )
        self.info: Final[EngineInfo] = replace(
            decode.info,
            placement=placement,
            load_seconds=prefill.info.load_seconds + decode.info.load_seconds,
            concurrency=min(prefill.info.concurrency, decode.info.concurrency),
        )
        self.kv_identity: Final[KvIdentity] = decode.kv_identity

    def new_state(self) -> SplitDecodeState:
        return SplitDecodeState(self._prefill, self._decode.new_state())

    def with_adapter(self, adapter: Adapter) -> SplitEngine:
        """See `edgesdk.engines.base.AdaptableEngine`."""
        return SplitEngine(self._prefill.with_adapter(adapter), self._decode.with_adapter(adapter))

    def close(self) -> None:
        self._prefill.close()
        self._decode.close()


class SplitDecodeState:
    """Implements `edgesdk.engines.base.DecodeState`: a state on the device for answers, whose long
    calls run on the other one."""

    def __init__(self, prefill: OnnxEngine, state: OnnxDecodeState) -> None:
        self._prefill = prefill
        self._state = state
        self._latest: HiddenStates | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        return self._state.tokens

    @property
    def hidden_states(self) -> HiddenStates | None:
        return self._latest

    def extend(
        self,
        tokens: npt.ArrayLike,
        *,
        logits: Rows = "last",
        cancellation: CancellationToken | None = None,
    ) -> Logits:
        # What is no list of numbers has no such length, and is refused by the state.
        long = logits != "each" and isinstance(tokens, list | np.ndarray)
        if not long or len(tokens) < MIN_PREFILL:  # type: ignore[arg-type]
            found = self._state.extend(tokens, logits=logits, cancellation=cancellation)
            self._latest = self._state.hidden_states
            return found
        self._state.check_open()
        there = self._prefill.new_state()
        try:
            there.take_over(self._state)
            found = there.extend(tokens, logits=logits, cancellation=cancellation)
            self._state.take_over(there)
            self._latest = there.hidden_states
        finally:
            there.close()
        return found

    def rewind(self, length: int) -> None:
        self._state.rewind(length)

    def fork(self) -> SplitDecodeState:
        return SplitDecodeState(self._prefill, self._state.fork())

    def save(self, path: Path, metadata: StateMetadata | None = None) -> None:
        self._state.save(path, metadata)

    def restore(self, path: Path) -> dict[str, JsonValue]:
        return self._state.restore(path)

    def close(self) -> None:
        self._state.close()
