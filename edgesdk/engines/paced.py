"""Rest between the calls of an engine, at the pace of a power policy."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy.typing as npt
from pydantic import JsonValue

from edgesdk.bundle.adapter import Adapter
from edgesdk.engines.base import (
    DecodeState,
    Engine,
    HiddenStates,
    Logits,
    Rows,
    adapted_engine,
)
from edgesdk.engines.saved_state import StateMetadata
from edgesdk.system.cancellation import CancellationToken
from edgesdk.system.power import Governor


class PacedEngine:
    """Implements `edgesdk.engines.base.Engine` with pauses between another engine's calls."""

    def __init__(self, engine: Engine, governor: Governor) -> None:
        self.info: Final = engine.info
        self.kv_identity: Final = engine.kv_identity
        self._engine = engine
        self._governor = governor

    def new_state(self) -> PacedDecodeState:
        return PacedDecodeState(self._engine.new_state(), self._governor)

    def with_adapter(self, adapter: Adapter) -> PacedEngine:
        """See `edgesdk.engines.base.AdaptableEngine`, which the other engine has to be."""
        return PacedEngine(adapted_engine(self._engine, adapter), self._governor)

    def close(self) -> None:
        self._engine.close()


class PacedDecodeState:
    """Implements `edgesdk.engines.base.DecodeState`."""

    def __init__(self, state: DecodeState, governor: Governor) -> None:
        self._state = state
        self._governor = governor
        self._worked = 0.0
        self._owed = 0.0

    @property
    def tokens(self) -> tuple[int, ...]:
        return self._state.tokens

    @property
    def hidden_states(self) -> HiddenStates | None:
        return self._state.hidden_states

    def extend(
        self,
        tokens: npt.ArrayLike,
        *,
        logits: Rows = "last",
        cancellation: CancellationToken | None = None,
    ) -> Logits:
        # Before and not after: a first token is not kept waiting for its own pause.
        self._owed, paused = self._governor.rest(self._worked, self._owed)
        if cancellation is not None:
            cancellation.paused_seconds += paused
        begun = self._governor.clock()
        rows = self._state.extend(tokens, logits=logits, cancellation=cancellation)
        self._worked = self._governor.clock() - begun
        return rows

    def rewind(self, length: int) -> None:
        self._state.rewind(length)

    def fork(self) -> PacedDecodeState:
        return PacedDecodeState(self._state.fork(), self._governor)

    def save(self, path: Path, metadata: StateMetadata | None = None) -> None:
        self._state.save(path, metadata)

    def restore(self, path: Path) -> dict[str, JsonValue]:
        return self._state.restore(path)

    def close(self) -> None:
        self._state.close()
