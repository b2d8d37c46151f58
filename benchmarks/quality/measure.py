"""Measure any model file on the same tokens, against the logits of fp32 weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from edgesdk_export.quality.layerwise import Float32, LayerwiseModel
from edgesdk_export.quality.layerwise_models import LayerwiseCheckpoint
from edgesdk_quantize.divergence import Divergence, DivergenceMeter, join
from gguf import GGUFReader

from edgesdk.engines.devices import HOST_PROVIDER

Ids = npt.NDArray[np.int64]
# Token windows int64 [windows, length] to the logits float32 [length, vocab] of each in turn.
Logits = Callable[[Ids], Iterator[Float32]]

# Rope tables are computed, not learned, and GGUF files have none.
_TABLES = ("cos", "sin", "cos_cache", "sin_cache")


def streamed(stack: LayerwiseModel) -> Logits:
    """Of a decoder that runs layer by layer."""

    def run(ids: Ids) -> Iterator[Float32]:
        head, states = stack.head(0, stack.vocab_size), _states(stack, ids)
        return (head(state)[0] for state in states)

    return run


def in_one_session(model: Path) -> Logits:
    """Of an ONNX model of onnxruntime-genai's builder."""

    def run(ids: Ids) -> Iterator[Float32]:
        session = onnxruntime.InferenceSession(str(model), providers=[HOST_PROVIDER])
        config = json.loads((model.parent / "genai_config.json").read_text())["model"]["decoder"]
        empty = np.zeros((1, config["num_key_value_heads"], 0, config["head_size"]), np.float32)
        for row in ids:
            feeds = {"input_ids": row[None], "attention_mask": np.ones((1, len(row)), np.int64)}
            feeds |= {port.name: feeds.get(port.name, empty) for port in session.get_inputs()}
            yield np.asarray(session.run(["logits"], feeds)[0])[0]

    return run


@dataclass(frozen=True)
class Reference:
    """The fp32 weights, run once: states after the last layer [windows, 1, length, hidden]."""

    stack: LayerwiseCheckpoint
    ids: Ids
    states: list[Float32]

    @classmethod
    def of(cls, stack: LayerwiseCheckpoint, ids: Ids) -> Reference:
        return cls(stack, ids, _states(stack, ids))

    def compare(self, candidate: Logits) -> Divergence:
        """Of every position that another one follows."""
        head, found = self.stack.head(0, self.stack.vocab_size), []
        for row, state, logits in zip(self.ids, self.states, candidate(self.ids), strict=True):
            meter = DivergenceMeter(row[1:])
            meter.add(head(state)[0, :-1], logits[:-1])
            found.append(meter.result())
        return join(found)


def _states(stack: LayerwiseModel, ids: Ids) -> list[Float32]:
    embed = stack.embed()
    states = [embed(row[None]) for row in ids]
    for index in range(stack.layers):
        layer = stack.layer(index)
        states = [layer(state) for state in states]
    return states


def stored_bits(model: Path, parameters: int) -> float:
    """Bits of all stored weights, scales and zero-points too, over the parameters (a tied head
    counted once). Bytes that two tensors share count once; rope tables do not."""
    if model.suffix == ".gguf":
        size = sum(int(tensor.n_bytes) for tensor in GGUFReader(model).tensors)
        return 8 * size / parameters
    inline, ranges = 0, set()
    for tensor in onnx.load(model, load_external_data=False).graph.initializer:
        if tensor.name.rpartition(".")[2] in _TABLES:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            ranges.add((place["location"], int(place.get("offset", 0)), int(place["length"])))
        else:
            inline += tensor.ByteSize()
    return 8 * (inline + sum(length for _, _, length in ranges)) / parameters
