"""A number format that is one class: registered, it is exported, calibrated, measured and run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from edgesdk_export.calibration.format_mix import formats_to_mix
from edgesdk_export.onnx import WeightScheme
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.quality.evaluation_text import EvaluationText
from edgesdk_export.recipes import load_recipe
from edgesdk_quantize.formats import BlockFormat, PackedMatrix, registry
from edgesdk_quantize.formats.blocks import Float32, dequantize, pack, to_blocks
from support.tiny_models import make_tiny

import edgesdk
from edgesdk.bundle.opening import Bundle
from edgesdk.errors import RequestError

pytestmark = pytest.mark.integration

TEXT = EvaluationText("fox.txt", "the quick brown fox jumps over the lazy dog " * 400)


@dataclass(frozen=True)
class Int3(BlockFormat):
    """3-bit codes with a zero-point, each stored in 4 bits, which MatMulNBits reads."""

    block: int = 32
    name: str = "int3"
    bits: int = 4
    recipe_bits: int = 3
    max_code: int = 7
    has_zero_points: bool = True
    expected_error: float = 0.17
    mix_blocks: tuple[int, ...] = (32,)

    def quantize(self, rows: Float32) -> PackedMatrix:
        blocks = to_blocks(rows, self.block)
        low = np.minimum(blocks.min(axis=-1), 0)
        scales = np.maximum((np.maximum(blocks.max(axis=-1), 0) - low) / 7, np.float32(1e-20))
        zeros = np.rint(-low / scales)
        codes = np.clip(np.rint(blocks / scales[..., None]) + zeros[..., None], 0, 7)
        return PackedMatrix(
            pack(codes.astype(np.uint8), 4), scales, pack(zeros.astype(np.uint8), 4)
        )

    def dequantize(self, packed: PackedMatrix, *, columns: int) -> Float32:
        return dequantize(packed, bits=4, columns=columns)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known = dict(registry._formats), dict(registry._block_formats)
    registry.register(Int3)
    yield
    for table, before in zip((registry._formats, registry._block_formats), known, strict=True):
        table.clear()
        table.update(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "hf"
    make_tiny("llama", folder, initializer_range=0.05)
    return folder


def bundle_of(checkpoint: Path, target: Path, **settings) -> Bundle:
    job = ExportJob(
        *(checkpoint, target, "tiny"),
        text=TEXT,
        calibration_text=TEXT,
        **{"quality_tokens": 512, **settings},
    )
    return export(job, SilentProgress())


@pytest.mark.usefixtures("registered")
def test_a_new_format_is_exported_and_answers(checkpoint: Path, tmp_path: Path) -> None:
    bundle = bundle_of(checkpoint, tmp_path / "int3", scheme="int3")
    stored = bundle.manifest.quantization
    assert (stored.weights, stored.head) == ("int3", "int8-symmetric")
    assert stored.method == "MatMulNBits, block 32, round to nearest"
    better = bundle_of(checkpoint, tmp_path / "int4", scheme="int4").manifest.quality
    assert bundle.manifest.quality.kl_mean > better.kl_mean
    with edgesdk.load(bundle.path) as model:
        assert model.respond("fox", max_tokens=4).receipt.output_tokens > 0


@pytest.mark.usefixtures("registered")
def test_a_recipe_names_it_by_its_bits_and_calibrates_it(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "three.toml").write_text("[onnx]\nbits = 3\nmethod = 'gptq'\nscales = 'uint8'\n")
    recipe = load_recipe(str(tmp_path / "three.toml"))
    bundle = bundle_of(checkpoint, tmp_path / "b", recipe=recipe)
    assert bundle.manifest.quantization.weights == "int3"
    again = load_recipe(str(bundle.file("recipe.toml")))
    assert again.onnx_scheme(1).linear.max_code == 7


@pytest.mark.usefixtures("registered")
def test_a_budget_and_an_embedding_may_take_it_if_it_says_so(tmp_path: Path) -> None:
    scheme = WeightScheme.named("int4")
    assert Int3(32) in formats_to_mix(scheme)
    (tmp_path / "head.toml").write_text("[onnx]\nembedding = 'int3'\n")
    with pytest.raises(RequestError, match="'int3' is none of auto, int8"):
        load_recipe(str(tmp_path / "head.toml"))


def test_what_is_not_registered_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no weight format 'int3'"):
        bundle_of(checkpoint, tmp_path / "b", scheme="int3")
