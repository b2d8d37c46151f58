"""An adapter's weights as the inputs that its graph takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from edgesdk.bundle.adapter import Adapter
from edgesdk.errors import AdapterMismatch, DamagedBundle

LowRankInputs = Mapping[str, ort.OrtValue]


def low_rank_inputs(adapter: Adapter) -> LowRankInputs:
    """The weights of an adapter as float32, by graph input.

    Their memory is theirs: keep them while a binding refers to them.

    Raises:
        DamagedBundle: onnxruntime cannot read the file.
    """
    path = adapter.role_file("adapter")
    try:
        parameters = ort.AdapterFormat.read_adapter(str(path)).get_parameters()
    # onnxruntime's exceptions have no common base.
    except Exception as error:
        raise DamagedBundle(
            f"{path} is no adapter that onnxruntime reads: {error}.",
            hint="Export the adapter again.",
        ) from error
    return {
        name: ort.OrtValue.ortvalue_from_numpy(value.numpy().astype(np.float32))
        for name, value in parameters.items()
    }


def check_low_rank_inputs(session: ort.InferenceSession, inputs: LowRankInputs, path: Path) -> None:
    """Compare an adapter's weights with what its graph takes.

    Raises:
        AdapterMismatch: one is missing, or has another shape.
    """
    ranks: dict[str, int] = {}
    wanted = {port.name: port.shape for port in session.get_inputs() if ".lora_" in port.name}
    for name in sorted(wanted.keys() ^ inputs.keys()):
        raise _unfit(path, f"it {'lacks' if name in wanted else 'has'} the weights {name}")
    for name, dims in wanted.items():
        shape = inputs[name].shape()
        rank = shape[1 if name.endswith("lora_a") else 0]
        fits = len(shape) == len(dims) and all(
            not isinstance(want, int) or have == want
            for have, want in zip(shape, dims, strict=True)
        )
        if not fits:
            raise _unfit(path, f"the weights {name} have the shape {shape}, not {dims}")
        if ranks.setdefault(name.rpartition(".")[0], rank) != rank:
            raise _unfit(path, f"the two ranks of {name.rpartition('.')[0]} differ")


def _unfit(path: Path, why: str) -> AdapterMismatch:
    return AdapterMismatch(
        f"The adapter {path} does not fit its graph: {why}.", hint="Export the adapter again."
    )
