"""A checkpoint's logits on a few tokens, as it is or with random errors in its weights."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgesdk_export.quality.stacks import CheckpointStack
from edgesdk_export.quality.streamed import head_slices
from edgesdk_export.selftest.expected import WeightErrors
from edgesdk_export.weights import Decoder, Float32, LazyTensor

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
        decoder = erring(decoder, errors)
    stack = CheckpointStack(decoder)
    states = stack.embed()(ids[None])
    for index in range(stack.layers):
        states = stack.layer(index)(states)
    logits = np.empty((len(ids), stack.vocab_size), np.float32)
    for start, stop in head_slices(stack):
        logits[:, start:stop] = stack.head(start, stop)(states)[0]
    return logits


def erring(decoder: Decoder, errors: WeightErrors) -> Decoder:
    """The decoder with Gaussian errors in its matrices; those of the head are in the embedding
    too."""
    weights: dict[str, LazyTensor] = {}
    for name, tensor in decoder.weights.items():
        size = errors.head if name.startswith(("embed.", "head.")) else errors.linear
        weights[name] = _Erring(tensor, size, name) if len(tensor.shape) > 1 else tensor
    return Decoder(decoder.spec, weights)


def with_errors(values: Float32, size: float, seed: str) -> Float32:
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
class _Erring:
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
        return with_errors(self.tensor.rows(start, stop), self.size, f"{self.name}:{start}")
