"""A Core ML package says what the checkpoint says, in every family and number format.

Core ML runs on macOS. Here the package's program is computed in numpy from its files, operator by
operator as coremltools describes them, and read by coremltools' own parser.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from edgesdk_export.onnx.source_blocks import MatrixBlocks
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from edgesdk_export.recipes.recipe import Recipe
from edgesdk_export.recipes.sections import OnnxRecipe
from support.onnx_decoding import OnnxDecoding
from support.tiny_models import VARIANTS, make_tiny

from edgesdk.bundle import coreml_io
from edgesdk.bundle.opening import Bundle, open_bundle, verify_bundle
from edgesdk.engines.coreml.step_inputs import StepInputs
from edgesdk.errors import DamagedBundle, ExportError, RequestError

pytest.importorskip("coremltools")
import coremltools
from coremltools.converters.mil.frontend.milproto.load import load
from edgesdk_export.coreml.interpreter import PackageInterpreter

pytestmark = pytest.mark.integration

# Past every window of the tiny models (24 at most), and past phi3's short factors (32).
TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(60)]
# Chunks of `prefill` that are whole and that are not, and single tokens, in turn.
PIECES = (16, 9, 1, 1, 1, 16, 1, 1, 11, 1, 1, 1)


def exported(folder: Path, variant: str, *, stored: dict[str, Any], **overrides: Any) -> Bundle:
    """A tiny model in a package whose weights are as a recipe's section says."""
    make_tiny(variant, folder / "checkpoint", **overrides)
    return packed(folder, stored)


def packed(folder: Path, stored: dict[str, Any]) -> Bundle:
    recipe = Recipe(name="test", onnx=OnnxRecipe.model_validate(stored))
    job = ExportJob(
        folder / "checkpoint",
        folder / "bundle",
        "tiny",
        format="coreml",
        target="coreml",
        recipe=recipe,
        window=96,
        prefill=16,
        quality_tokens=0,
    )
    return export(job, SilentProgress())


def logits_of(bundle: Bundle, *, rounded: bool) -> np.ndarray:
    """Logits of `TOKENS`, piece by piece over one KV cache."""
    package = PackageInterpreter(bundle.role_file("decoder"), rounded=rounded, keep_weights=True)
    spec, static = bundle.decoder_spec(), bundle.manifest.static
    assert spec is not None
    assert static is not None
    static = static.model_copy(update={"dtype": package.floats.name})
    inputs, states = StepInputs(spec, static), package.new_states(coreml_io.PREFILL)
    rows, start = [], 0
    for size in PIECES:
        function, fed = inputs.of(TOKENS[start : start + size], start, start + size)
        outputs = package.run(function, fed, states)
        rows.append(outputs[coreml_io.LOGITS][0, :size].astype(np.float32))
        start += size
    return np.concatenate(rows)


def transformers_logits(model: Any) -> np.ndarray:
    cache, rows, start = None, [], 0
    with torch.no_grad():
        for size in PIECES:
            piece = torch.tensor([TOKENS[start : start + size]])
            result = model(piece, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            rows.append(result.logits[0].numpy())
            start += size
    return np.concatenate(rows)


def in_float16(model: Any) -> Any:
    """The model with its weights rounded as the package rounds them; it computes in float32."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half().float())
    return model


def decided(logits: np.ndarray) -> np.ndarray:
    """Where the best token of a random model is further ahead than float16 rounds."""
    best = np.sort(logits, axis=1)
    return best[:, -1] - best[:, -2] > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_float16_package_is_the_checkpoint(variant: str, tmp_path: Path) -> None:
    model = in_float16(make_tiny(variant, tmp_path / "checkpoint"))
    bundle = packed(tmp_path, {"bits": 16})
    wanted = transformers_logits(model)
    scale = np.abs(wanted).max()
    # Constants of the program are float16 in any case.
    exact = logits_of(bundle, rounded=False)
    np.testing.assert_allclose(exact, wanted, atol=2e-3 * scale)
    assert (exact.argmax(axis=1) == wanted.argmax(axis=1)).all()
    found = logits_of(bundle, rounded=True)
    np.testing.assert_allclose(found, wanted, atol=0.03 * scale)
    clear = decided(wanted)
    assert clear.mean() > 0.7
    assert (found.argmax(axis=1) == wanted.argmax(axis=1))[clear].all()


@pytest.mark.parametrize(
    ("variant", "stored"),
    [
        ("qwen2", {"bits": 4, "symmetric": True}),
        ("llama-biased", {"bits": 4}),
        ("llama", {"bits": 8, "block": 16}),
        ("qwen3", {"bits": 8, "symmetric": True, "embedding": "fp16"}),
        ("gemma2", {"bits": 4, "block": 64, "symmetric": True}),
    ],
)
def test_the_codes_are_those_of_the_onnx_model(
    variant: str, stored: dict[str, Any], tmp_path: Path
) -> None:
    """onnxruntime computes what numpy does of the package, but for scales in float16."""
    overrides = {"intermediate_size": 128}
    bundle = exported(tmp_path, variant, stored=stored, **overrides)
    recipe = Recipe(name="test", onnx=OnnxRecipe.model_validate(stored))
    job = ExportJob(
        tmp_path / "checkpoint", tmp_path / "onnx", "tiny", recipe=recipe, quality_tokens=0
    )
    export(job, SilentProgress())
    model = onnx.load(tmp_path / "onnx" / "model.onnx")
    in_halves(model)
    onnx.save(model, tmp_path / "halves.onnx")
    spec = bundle.decoder_spec()
    assert spec is not None
    reference = OnnxDecoding(tmp_path / "halves.onnx", spec, capacity=128)
    rows, start = [], 0
    for size in PIECES:
        rows.append(reference.extend(TOKENS[start : start + size]))
        start += size
    wanted = np.concatenate(rows)
    found = logits_of(bundle, rounded=False)
    np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())


def in_halves(model: onnx.ModelProto) -> None:
    """Round scales, norms and biases to float16, and no activations to 8 bits."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith((".scales", ".weight", ".bias")):
            values = onnx.numpy_helper.to_array(tensor)
            rounded = values.astype(np.float16).astype(values.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(rounded, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1


@pytest.mark.parametrize(
    ("variant", "stored"),
    [("gemma3", {"bits": 4}), ("phi3-longrope", {"bits": 16}), ("llama-biased", {"bits": 8})],
)
def test_coremltools_reads_the_package(
    variant: str, stored: dict[str, Any], tmp_path: Path
) -> None:
    """Its parser checks the operands of every operator, and infers the types of all values."""
    bundle = exported(tmp_path, variant, stored=stored)
    path = bundle.role_file("decoder")
    described = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    weights = str(path / "Data" / "com.apple.CoreML" / "weights")
    program = load(described, described.specificationVersion, weights)
    assert set(program.functions) == {coreml_io.PREFILL, coreml_io.DECODE}
    assert described.description.defaultFunctionName == coreml_io.DECODE
    for name, function in described.mlProgram.functions.items():
        said = {
            out.name: tuple(size.constant.size for size in out.type.tensorType.dimensions)
            for operation in function.block_specializations[function.opset].operations
            for out in operation.outputs
        }
        inferred = {
            out.name: tuple(out.shape)
            for operation in program.functions[name].operations
            for out in operation.outputs
            if out.name in said
        }
        assert len(inferred) > 100
        assert inferred == {out: said[out] for out in inferred}


def test_both_functions_share_the_weights(tmp_path: Path) -> None:
    bundle = exported(tmp_path, "llama", stored={"bits": 16})
    spec = bundle.decoder_spec()
    assert spec is not None
    path = bundle.role_file("decoder")
    size = (path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").stat().st_size
    # Each constant has a header, and begins at a multiple of 64 bytes.
    assert 2 * spec.parameters < size < 2 * spec.parameters + 128 * 60


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    first = exported(tmp_path / "a", "qwen2", stored={"bits": 4})
    second = exported(tmp_path / "b", "qwen2", stored={"bits": 4})
    assert first.manifest.files == second.manifest.files
    names = [entry.name for entry in first.manifest.files if entry.name.startswith("model.")]
    assert names == [
        "model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
        "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
        "model.mlpackage/Manifest.json",
    ]


def test_a_damaged_package_is_found(tmp_path: Path) -> None:
    bundle = exported(tmp_path, "llama", stored={"bits": 8})
    program = bundle.role_file("decoder") / "Data" / "com.apple.CoreML" / "model.mlmodel"
    data = bytearray(program.read_bytes())
    data[len(data) // 2] ^= 1
    program.write_bytes(data)
    with pytest.raises(DamagedBundle, match=r"model\.mlmodel is damaged"):
        verify_bundle(bundle)
    program.unlink()
    with pytest.raises(DamagedBundle, match=r"model\.mlmodel is missing"):
        open_bundle(bundle.path)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"bits": 32}, "package stores no float32"),
        ({"bits": 4, "embedding": "fp32"}, "package stores no float32"),
        ({"bits": 8, "block": 64}, "96 columns, which its 2 blocks do not divide"),
    ],
)
def test_weights_that_core_ml_has_not(stored: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=words):
        exported(tmp_path, "llama", stored=stored)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_recipes_that_calibrate_make_packages_too(tmp_path: Path) -> None:
    """Without the scales in 8 bits and the offsets that Core ML has not."""
    stored = {"bits": 4, "method": "gptq", "scales": "uint8", "offsets": True}
    bundle = exported(tmp_path, "llama", stored=stored)
    quantization = bundle.manifest.quantization
    assert quantization.weights == "int4"
    assert "GPTQ" in quantization.method
    assert "MatMulNBits" not in quantization.method
    assert bundle.manifest.versions["coremltools"] == coremltools.__version__
    recipe = bundle.text("recipe.toml")
    assert 'scales = "float32"' in recipe
    assert "offsets = false" in recipe


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"window": 257}, "window of 257 tokens is larger than the model's context of 256"),
        ({"prefill": 48}, "prefill of 48 tokens at a time is not a power of two"),
        ({"prefill": 512}, "prefill of 512 tokens at a time is not a power of two from 2 to 256"),
    ],
)
def test_sizes_that_cannot_be(sizes: dict[str, int], words: str, tmp_path: Path) -> None:
    make_tiny("llama", tmp_path / "checkpoint")
    job = ExportJob(
        tmp_path / "checkpoint",
        tmp_path / "bundle",
        "tiny",
        format="coreml",
        target="coreml",
        **sizes,  # type: ignore[arg-type]
    )
    with pytest.raises(RequestError, match=words):
        export(job, SilentProgress())
    assert not (tmp_path / "bundle").exists()


def test_a_stopped_export_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was quantized is not quantized again, and the package is the same in the end."""
    whole = exported(tmp_path / "whole", "llama", stored={"bits": 4})
    read: list[str] = []
    once = MatrixBlocks.chunks

    def stopping(blocks: MatrixBlocks, *arguments: Any) -> Any:
        read.append("matrix")
        if len(read) == 9:
            raise KeyboardInterrupt
        return once(blocks, *arguments)

    monkeypatch.setattr(MatrixBlocks, "chunks", stopping)
    with pytest.raises(KeyboardInterrupt):
        exported(tmp_path / "stopped", "llama", stored={"bits": 4})
    bundle = packed(tmp_path / "stopped", {"bits": 4})
    # An embedding, three layers of five matrices, and a head; the second layer was begun twice.
    assert len(read) == 9 + 17 - 6
    assert bundle.manifest.files == whole.manifest.files


def test_values_that_float16_cannot_square(tmp_path: Path) -> None:
    """States of real models are in the thousands, whose squares are beyond float16."""
    model = make_tiny("llama", tmp_path / "checkpoint")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2_000)
        model.save_pretrained(tmp_path / "checkpoint")
    in_float16(model)
    bundle = packed(tmp_path, {"bits": 16})
    wanted = transformers_logits(model)
    np.testing.assert_allclose(
        logits_of(bundle, rounded=True), wanted, atol=0.03 * np.abs(wanted).max()
    )
