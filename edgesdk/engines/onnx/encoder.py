"""Runs the ONNX encoder of a bundle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from edgesdk.bundle import encoder_spec as names
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import EngineInfo, HiddenStates, LoadSettings
from edgesdk.engines.devices import DeviceRecord
from edgesdk.engines.encoder_engine import Scores, TokenRow, check_rows, length_batches
from edgesdk.engines.onnx.providers import LoadedSession, open_session
from edgesdk.errors import DamagedBundle, EngineError
from edgesdk.system.forks import ForkGuard


class OnnxEncoder:
    """Implements `edgesdk.engines.encoder_engine.EncoderEngine`."""

    def __init__(self, loaded: LoadedSession, info: EngineInfo) -> None:
        self._loaded: LoadedSession | None = loaded
        self._typed = any(port.name == names.TOKEN_TYPES for port in loaded.session.get_inputs())
        self._fork_guard = ForkGuard("The model", EngineError)
        self.info: Final = info

    def hidden_states(self, rows: Sequence[TokenRow]) -> list[HiddenStates]:
        found: list[Any] = [None] * len(rows)
        for places, output in self._batches(rows, names.HIDDEN_STATES):
            for at, states in zip(places, output, strict=True):
                found[at] = states[: len(rows[at].ids)]
        return found

    def scores(self, rows: Sequence[TokenRow]) -> Scores:
        found: list[Any] = [None] * len(rows)
        for places, output in self._batches(rows, names.SCORES):
            for at, scores in zip(places, output, strict=True):
                found[at] = scores
        return np.stack(found)

    def close(self) -> None:
        self._loaded = None

    def _batches(self, rows: Sequence[TokenRow], output: str) -> Any:
        self._fork_guard.check()
        loaded = self._loaded
        if loaded is None:
            raise EngineError("This engine is closed.", hint="Open the model again.")
        check_rows(rows, self.info)
        for places in length_batches(rows):
            batch = [rows[at] for at in places]
            shape = (len(batch), len(batch[0].ids))
            ids, types = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
            for line, row in enumerate(batch):
                ids[line, : len(row.ids)] = row.ids
                types[line, : len(row.types)] = row.types
            given = {
                names.INPUT_IDS: ids,
                names.LENGTHS: np.array([len(row.ids) for row in batch], np.int32),
            }
            if self._typed:
                given[names.TOKEN_TYPES] = types
            try:
                (values,) = loaded.session.run([output], given)
            # onnxruntime's exceptions have no common base.
            except Exception as error:
                raise EngineError(f"onnxruntime failed to run the encoder: {error}") from error
            yield places, values


def open_encoder(
    source: Bundle | Path, *, record: DeviceRecord, settings: LoadSettings
) -> OnnxEncoder:
    """Load the encoder of an ONNX bundle.

    Raises:
        DamagedBundle: the graph is no encoder's.
        DeviceUnavailable, EngineError: see `edgesdk.engines.onnx.providers.open_session`.
    """
    if not isinstance(source, Bundle):
        raise EngineError(f"{source} is not a bundle.", hint="Export the model to a bundle first.")
    started = time.perf_counter()
    path, shape = source.role_file("encoder"), source.manifest.shape
    loaded = open_session(path, record, settings)
    inputs = {port.name for port in loaded.session.get_inputs()}
    outputs = {port.name for port in loaded.session.get_outputs()}
    known = {names.INPUT_IDS, names.LENGTHS, names.TOKEN_TYPES}
    wanted = {names.HIDDEN_STATES} | ({names.SCORES} if source.manifest.reranking else set())
    if not {names.INPUT_IDS, names.LENGTHS} <= inputs <= known or not wanted <= outputs:
        raise DamagedBundle(
            f"The graph {path} is not an encoder that this runtime can drive: it takes"
            f" {', '.join(sorted(inputs))} and gives {', '.join(sorted(outputs))}.",
            hint="Export the model again with this version of edgesdk.",
        )
    info = EngineInfo(
        name=f"onnxruntime {ort.__version__}",
        requested_device=settings.requested_device,
        placement=loaded.placement,
        vocab_size=shape.vocab_size,
        context_length=min(shape.context_length, settings.context or shape.context_length),
        load_seconds=0.0,
        concurrency=record.concurrency,
        threads=settings.threads,
    )
    return OnnxEncoder(loaded, replace(info, load_seconds=time.perf_counter() - started))
