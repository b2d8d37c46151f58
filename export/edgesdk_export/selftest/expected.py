"""How far a well-made bundle may be from its checkpoint.

A KL divergence that one model shrugs off is the ruin of another: the same 4-bit format costs 0.03
nats on a model of 1.5 billion parameters, 0.2 on one of 135 million, and 2 on one with random
weights. So the limit is not a number of nats for each format. It is the size of the error that the
format makes in a weight, and the model itself says what errors of that size cost, when they are
random: see `edgesdk_export.selftest.noise`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgesdk.bundle.manifest import Quantization

# The error of a weight (root mean square, relative to the weights of its row), by the format's name
# up to its first number of bits and by the whole name where the family varies. What a rounded grid
# gives on Gaussian weights: a step of (range of a block of 32, about 4.2 standard deviations) /
# (2^bits - 1), over the square root of 12. 8 bits are set twice as high, since kernels round
# what the weights are multiplied with to 8 bits as well, and floats at what the kernels' own
# approximations of exp and tanh come to.
_ERRORS = {
    "fp32": 5e-4,
    "f32": 5e-4,
    "fp16": 1e-3,
    "f16": 1e-3,
    "bf16": 3e-3,
    "int8": 0.01,
    "q8": 0.01,
    "q6": 0.02,
    "q5": 0.04,
    "int4": 0.08,
    "q4": 0.08,
    "iq4": 0.08,
    "q3": 0.16,
    "q2": 0.32,
}

# Errors of rounding are not random, and 48 tokens are few: KL was 0.01 to 1.7 times what random
# errors of the same size gave, on models of 50 thousand to 1.5 billion weights. One matrix that is
# swapped with another, transposed, or shifted by a row costs more than this even beside 4 bits.
_TIMES = 4.0
# Below this, in nats, float32 itself has no more digits.
_LEAST = 1e-5


@dataclass(frozen=True)
class WeightErrors:
    """Relative errors of weights: of the layers' matrices, and of embedding and head."""

    linear: float
    head: float


def errors_of(stored: Quantization) -> WeightErrors:
    """What the formats of a bundle do to its weights; of several, the coarsest counts."""
    return WeightErrors(_coarsest(stored.weights), _coarsest(stored.head))


def limit_for(expected_kl: float) -> float:
    """The mean KL divergence in nats that a bundle may have, where random errors of its formats'
    size cost `expected_kl`."""
    return max(_TIMES * expected_kl, _LEAST)


def _coarsest(names: str) -> float:
    """Of "int4+int8", "int8-symmetric", "q4_k_m": formats, where there are several."""
    return max(_ERRORS[word] for word in re.split(r"[^a-z0-9]+", names) if word in _ERRORS)
