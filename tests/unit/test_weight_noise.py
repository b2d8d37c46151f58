"""What a bundle may lose, by the formats that it is made of."""

from __future__ import annotations

import numpy as np
import pytest
from edgesdk_export.gguf import file_type_names
from edgesdk_export.selftest.weight_noise import add_noise, limit_for, weight_errors_of
from edgesdk_quantize.formats.registry import FORMATS

from edgesdk.bundle.manifest import Quantization


def stored(weights: str, head: str = "int8-symmetric") -> Quantization:
    return Quantization(weights=weights, head=head, method="", bits_per_weight=1)


def test_every_format_that_can_be_written_is_known() -> None:
    for name in (*file_type_names(), "fp32", "fp16", "int8", "int4", "int4+int8+int4-symmetric"):
        assert 0 < weight_errors_of(stored(name, name)).linear < 1


@pytest.mark.parametrize("name", ["int4", "int4-symmetric", "int8", "int8-symmetric"])
def test_the_known_sizes_are_those_of_real_rounding(name: str) -> None:
    """Of Gaussian weights; three times as high where rounded activations weigh as much."""
    weights = np.random.default_rng(1).standard_normal((64, 1024)).astype(np.float32)
    fmt = FORMATS[name]
    error = fmt.dequantize(fmt.quantize(weights), columns=1024) - weights
    relative = float(np.sqrt(np.square(error).mean() / np.square(weights).mean()))
    assert relative / 2 < weight_errors_of(stored(name)).linear < relative * 3.5


def test_of_several_formats_the_coarsest_counts() -> None:
    mixed = weight_errors_of(stored("int8+int4", "q6_k"))
    assert mixed.linear == weight_errors_of(stored("int4")).linear
    assert mixed.head == weight_errors_of(stored("q6_k")).linear


def test_limits_grow_with_what_is_expected_and_are_never_nothing() -> None:
    assert limit_for(0) > 0
    assert limit_for(1.0) > limit_for(0.1) > 0.1


def test_errors_have_their_size_in_each_row_and_are_the_same_again() -> None:
    rng = np.random.default_rng(2)
    weights = (rng.standard_normal((1500, 4000)) * rng.lognormal(size=(1500, 1))).astype(np.float32)
    noisy = add_noise(weights, 0.08, "name")
    sizes = np.linalg.norm(noisy - weights, axis=1) / np.linalg.norm(weights, axis=1)
    np.testing.assert_allclose(sizes, 0.08, rtol=0.1)
    np.testing.assert_array_equal(noisy, add_noise(weights, 0.08, "name"))
    assert not np.array_equal(noisy, add_noise(weights, 0.08, "other"))
