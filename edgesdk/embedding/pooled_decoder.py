"""Has a decoder read texts as an encoder does, where its engine gives hidden states."""

from __future__ import annotations

from collections.abc import Sequence

from edgesdk.bundle.manifest import Pooling
from edgesdk.engines.base import Engine, EngineInfo, HiddenStates
from edgesdk.engines.encoder_engine import Scores, TokenRow, check_rows
from edgesdk.errors import EngineError


class PooledDecoder:
    """Implements `edgesdk.engines.encoder_engine.EncoderEngine` over a decoder; it scores nothing.

    Args:
        pooling: with "last" only the last hidden state of a text is computed by the head.
    """

    def __init__(self, engine: Engine, pooling: Pooling) -> None:
        self._engine = engine
        self._pooling = pooling

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def hidden_states(self, rows: Sequence[TokenRow]) -> list[HiddenStates]:
        check_rows(rows, self.info)
        return [self._read(row) for row in rows]

    def scores(self, rows: Sequence[TokenRow]) -> Scores:
        raise EngineError("A decoder scores no pairs of texts.")

    def close(self) -> None:
        self._engine.close()

    def _read(self, row: TokenRow) -> HiddenStates:
        state = self._engine.new_state()
        try:
            state.extend(list(row.ids), logits="last" if self._pooling == "last" else "all")
            found = state.hidden_states
            if found is None:
                raise EngineError(
                    f"{self.info.name} gives no hidden states of this model.",
                    hint="Export it to ONNX: edgesdk export CHECKPOINT.",
                )
            # They are valid until the state's next call only.
            kept: HiddenStates = found.copy()
            return kept
        finally:
            state.close()
