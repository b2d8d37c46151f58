"""Say how far a well-made bundle may be from its checkpoint, by adding noise to the weights.

A KL divergence that one model shrugs off is the ruin of another: the same 4-bit format costs 0.03
nats on a model of 1.5 billion parameters, 0.2 on one of 135 million, and 2 on one with random
weights. So the limit is not a number of nats for each format. It is the size of the error that the
format makes in a weight, and the model itself says what random errors of that size cost.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from edgesdk_quantize.formats.registry import FORMATS

from edgesdk.bundle.manifest import Quantization
from edgesdk_export.gguf.file_types import file_type_named
from edgesdk_export.quality.layerwise import head_slices
from edgesdk_export.quality.layerwise_models import LayerwiseCheckpoint
from edgesdk_export.weights import Decoder, Float32, LazyTensor

# Errors of rounding are not random, and 48 tokens are few: KL was 0.01 to 1.7 times what random
# errors of the same size gave, on models of 50 thousand to 1.5 billion weights. One matrix that is
# swapped with another, transposed, or shifted by a row costs more than this even beside 4 bits.
_MARGIN = 4.0
# Below this, in nats, float32 itself has no more digits.
_MIN_LIMIT = 1e-5


@dataclass(frozen=True)
class WeightErrors:
    """Relative errors of weights: of the layers' matrices, and of embedding and head."""

    linear: float
    head: float


def weight_errors_of(stored: Quantization) -> WeightErrors:
    """The errors that the formats of a bundle make; of several formats, the coarsest counts."""
    return WeightErrors(_coarsest(stored.weights), _coarsest(stored.head))


def limit_for(expected_kl: float) -> float:
    """The mean KL divergence in nats that a bundle may have, where random errors of its formats'
    size cost `expected_kl`."""
    return max(_MARGIN * expected_kl, _MIN_LIMIT)


def _coarsest(names: str) -> float:
    """The largest error of "int4+int8", "int8-symmetric", "q4_k_m": of formats, or of a mixture's
    base type."""
    return max(_expected_error(name) for name in names.split("+"))


def _expected_error(name: str) -> float:
    known = FORMATS.get(name)
    return (file_type_named(name).base if known is None else known).expected_error


# Primes: what is drawn comes again at places that have nothing to do with rows or blocks.
_DRAWN, _STEP = 4_194_301, 1_009
Ids = npt.NDArray[np.int64]


def checkpoint_logits(decoder: Decoder, ids: Ids, errors: WeightErrors | None) -> Float32:
    """Logits of every token, computed in float32 with one layer in memory at a time.

    Args:
        ids: int64 [n].
        errors: random errors that each weight gets; None = none.

    Returns:
        float32 [n, vocab].
    """
    if errors is not None:
        decoder = with_weight_noise(decoder, errors)
    stack = LayerwiseCheckpoint(decoder)
    states = stack.embed()(ids[None])
    for index in range(stack.layers):
        states = stack.layer(index)(states)
    logits = np.empty((len(ids), stack.vocab_size), np.float32)
    for start, stop in head_slices(stack):
        logits[:, start:stop] = stack.head(start, stop)(states)[0]
    return logits


def with_weight_noise(decoder: Decoder, errors: WeightErrors) -> Decoder:
    """The decoder with Gaussian errors in its matrices; those of the head are in the embedding
    too."""
    sizes = {
        name: errors.head if name.startswith(("embed.", "head.")) else errors.linear
        for name, tensor in decoder.weights.items()
        if len(tensor.shape) > 1
    }
    return Decoder(decoder.spec, noisy_weights(decoder.weights, sizes))


def noisy_weights(
    weights: Mapping[str, LazyTensor], sizes: Mapping[str, float]
) -> dict[str, LazyTensor]:
    """Weights with Gaussian errors of a relative size in the matrices that are named."""
    return {
        name: _NoisyTensor(tensor, sizes[name], name) if name in sizes else tensor
        for name, tensor in weights.items()
    }


def add_noise(values: Float32, size: float, seed: str) -> Float32:
    """A matrix with Gaussian errors, `size` times as large as the values of each row are."""
    noise = np.empty(values.size, np.float32)
    drawn = _gaussian()
    digest = hashlib.sha256(seed.encode()).digest()
    start, filled = int.from_bytes(digest[:4], "big") % len(drawn), 0
    while filled < len(noise):
        taken = drawn[start : start + len(noise) - filled]
        noise[filled : filled + len(taken)] = taken
        filled, start = filled + len(taken), len(taken) % _STEP
    result = noise.reshape(values.shape)
    result *= np.float32(size) * np.sqrt(
        np.einsum("rc,rc->r", values, values)[:, None] / values.shape[1]
    )
    result += values
    return result


@functools.cache
def _gaussian() -> Float32:
    """Drawn once: a billion new numbers take longer than everything else here."""
    return np.random.default_rng(0).standard_normal(_DRAWN, np.float32)


@dataclass(frozen=True)
class _NoisyTensor:
    """A matrix with Gaussian errors; the same in every run, but drawn anew for each reading."""

    tensor: LazyTensor
    size: float
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    def rows(self, start: int, stop: int) -> Float32:
        return add_noise(self.tensor.rows(start, stop), self.size, f"{self.name}:{start}")
