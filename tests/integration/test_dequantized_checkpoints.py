"""Checkpoints that GPTQ, AWQ, compressed-tensors or an FP8 tool has quantized: read as the floats
that those tools mean."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.weights import read_whole
from safetensors.torch import load_file, save_file
from support.packed_weights import Parts, awq, fp8, gptq
from support.reference_decoder import logits_of
from support.tiny_models import make_tiny

from edgesdk.errors import CheckpointError, ConfigMismatch

pytestmark = pytest.mark.integration

TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(20)]
WHOLE = "model.safetensors"
Pack = Callable[[np.ndarray], tuple[Parts, np.ndarray]]

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
FP8 = {"quant_method": "fp8", "weight_block_size": [48, 64], "activation_scheme": "dynamic"}


def quantize(folder: Path, pack: Pack, *, head: bool = False) -> dict[str, np.ndarray]:
    """Quantize the linear layers of a checkpoint in place; gives the floats that are meant."""
    stored: dict[str, torch.Tensor] = {}
    meant: dict[str, np.ndarray] = {}
    for name, tensor in load_file(folder / WHOLE).items():
        if not name.endswith("proj.weight") and not (head and name == "lm_head.weight"):
            # Mapped from the file that is written below.
            stored[name] = tensor.clone()
            continue
        parts, meant[name] = pack(tensor.numpy())
        module = name.removesuffix("weight")
        stored |= {module + part: value.contiguous() for part, value in parts.items()}
    save_file(stored, folder / WHOLE)
    return meant


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_meant(folder: Path, model: Any, meant: dict[str, np.ndarray]) -> None:
    """Of the folder all weights, in odd pieces, and the logits."""
    checkpoint = open_checkpoint(folder)
    decoder = read_decoder(checkpoint)
    for name, exact in meant.items():
        tensor = checkpoint.tensors[name]
        assert tensor.shape == exact.shape
        np.testing.assert_allclose(read_whole(tensor), exact, rtol=1e-6, err_msg=name)
        pieces = [tensor.rows(i, min(i + 5, len(exact))) for i in range(0, len(exact), 5)]
        assert pieces[0].dtype == np.float32
        np.testing.assert_array_equal(np.concatenate(pieces), read_whole(tensor))
        assert tensor.rows(3, 3).shape == (0, exact.shape[1])
    state = {name: torch.from_numpy(exact) for name, exact in meant.items()}
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        wanted = model(torch.tensor([TOKENS])).logits[0].numpy()
    np.testing.assert_allclose(logits_of(decoder, TOKENS), wanted, atol=2e-4)


LAYOUTS: dict[str, tuple[dict[str, Any], Pack]] = {
    "gptq": (GPTQ, lambda w: gptq(w, 4, 32)),
    "gptq, act order": ({**GPTQ, "desc_act": True}, lambda w: gptq(w, 4, 32, act_order=True)),
    "gptq, asymmetric": (GPTQ, lambda w: gptq(w, 4, 32, symmetric=False)),
    "gptq v2": (
        {**GPTQ, "checkpoint_format": "gptq_v2"},
        lambda w: gptq(w, 4, 32, symmetric=False, v2=True),
    ),
    "gptq, 8 bits": ({**GPTQ, "bits": 8}, lambda w: gptq(w, 8, 32, symmetric=False)),
    "gptq, 3 bits": ({**GPTQ, "bits": 3}, lambda w: gptq(w, 3, 32, symmetric=False)),
    "gptq, 2 bits": ({**GPTQ, "bits": 2}, lambda w: gptq(w, 2, 32, symmetric=False)),
    "awq": (AWQ, lambda w: awq(w, 32)),
    "fp8 blocks": (FP8, lambda w: fp8(w, (48, 64))),
    "fp8 rows": ({"quant_method": "fbgemm_fp8"}, lambda w: fp8(w, None)),
    "fp8 tensor": ({"quant_method": "fp8"}, lambda w: fp8(w, w.shape)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_tools_mean(layout, tmp_path):
    settings, pack = LAYOUTS[layout]
    model = make_tiny("llama", tmp_path)
    meant = quantize(tmp_path, pack, head="awq" not in layout)
    configure(tmp_path, quantization_config=settings)
    assert_meant(tmp_path, model, meant)


def test_no_g_idx_and_one_group_for_all(tmp_path):
    model = make_tiny("llama", tmp_path)

    def pack(weight: np.ndarray) -> tuple[Parts, np.ndarray]:
        parts, meant = gptq(weight, 4, weight.shape[1])
        del parts["g_idx"]
        return parts, meant

    meant = quantize(tmp_path, pack)
    configure(tmp_path, quantization_config={**GPTQ, "group_size": -1})
    assert_meant(tmp_path, model, meant)


def test_only_a_file_beside_the_config_says_how(tmp_path):
    model = make_tiny("llama", tmp_path)
    meant = quantize(tmp_path, lambda w: gptq(w, 4, 32, act_order=True))
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 32}')
    assert_meant(tmp_path, model, meant)


def test_the_old_file_of_awq(tmp_path):
    model = make_tiny("llama", tmp_path)
    meant = quantize(tmp_path, lambda w: awq(w, 32))
    (tmp_path / "quant_config.json").write_text('{"w_bit": 4, "q_group_size": 32}')
    assert_meant(tmp_path, model, meant)


def test_biases_of_zeros_that_autogptq_adds(tmp_path):
    model = make_tiny("llama", tmp_path)

    def pack(weight: np.ndarray) -> tuple[Parts, np.ndarray]:
        parts, meant = gptq(weight, 4, 32)
        return {**parts, "bias": torch.zeros(len(weight))}, meant

    meant = quantize(tmp_path, pack)
    configure(tmp_path, quantization_config=GPTQ)
    assert_meant(tmp_path, model, meant)


def test_biases_and_fused_matrices_beside_packed_ones(tmp_path):
    for variant in ("qwen2", "phi3"):
        folder = tmp_path / variant
        model = make_tiny(variant, folder)
        meant = quantize(folder, lambda w: awq(w, 32))
        configure(folder, quantization_config=AWQ)
        assert_meant(folder, model, meant)


def test_scales_of_activations_and_of_the_cache_are_left(tmp_path):
    model = make_tiny("llama", tmp_path)

    def pack(weight: np.ndarray) -> tuple[Parts, np.ndarray]:
        parts, meant = fp8(weight, weight.shape)
        parts["weight_scale_inv"] = parts["weight_scale_inv"].reshape(())
        return {**parts, "input_scale": torch.tensor(0.5), "k_scale": torch.tensor(1.0)}, meant

    meant = quantize(tmp_path, pack)
    configure(tmp_path, quantization_config={"quant_method": "fp8"})
    assert_meant(tmp_path, model, meant)


# A matrix and its floats, as AutoAWQ 0.2.9's own `dequantize_gemm` gives them (groups of 2).
AWQ_WORDS = [[-1539066660, 255357750], [-168753601, -463277013],
             [-1944681763, -2017449976], [1009840507, 1926232606]]  # fmt: skip
AWQ_ZEROS = [[-1132501019, 1550941179], [446220302, -2109378298]]
AWQ_EIGHTHS = [[1, 2, 6, 2, 6, 1, 2, 5, 4, 1, 4, 6, 7, 8, 8, 1],
               [3, 4, 1, 2, 4, 6, 4, 4, 7, 8, 1, 2, 2, 2, 8, 1]]  # fmt: skip
AWQ_ROWS = {0: [0.875, 1.25, -0.375, -1.125], 1: [-3.0, -3.5, -1.0, -4.0],
            7: [-0.625, 2.5, 3.5, 1.0], 9: [0.875, 0.125, -5.0, 10.0],
            14: [0.0, 8.0, -5.0, 8.0], 15: [-0.625, 1.125, 0.0, -0.125]}  # fmt: skip


def test_the_numbers_of_autoawq(tmp_path):
    save_file(
        {
            "a.qweight": torch.tensor(AWQ_WORDS, dtype=torch.int32),
            "a.qzeros": torch.tensor(AWQ_ZEROS, dtype=torch.int32),
            "a.scales": torch.tensor(AWQ_EIGHTHS).div(8).half(),
        },
        tmp_path / WHOLE,
    )
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": AWQ}))
    tensor = open_checkpoint(tmp_path).tensors["a.weight"]
    for row, values in AWQ_ROWS.items():
        np.testing.assert_array_equal(tensor.rows(row, row + 1)[0], values)


def test_blocks_are_scaled_as_transformers_scales_them(tmp_path):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    weight = torch.randn(256, 384, generator=torch.Generator().manual_seed(0)).numpy()
    parts, meant = fp8(weight, (128, 128))
    theirs = Fp8Dequantize(None).convert(dict(parts))["weight"]
    np.testing.assert_allclose(theirs.float().numpy(), meant, rtol=1e-6)
    # transformers takes whole blocks only; published matrices end in parts of blocks, too.
    make_tiny("llama", tmp_path, hidden_size=192, intermediate_size=320, head_dim=32)
    meant_weights = quantize(tmp_path, lambda w: fp8(w, (128, 128)))
    configure(tmp_path, quantization_config={**FP8, "weight_block_size": [128, 128]})
    checkpoint = open_checkpoint(tmp_path)
    for name, exact in meant_weights.items():
        np.testing.assert_allclose(read_whole(checkpoint.tensors[name]), exact, rtol=1e-6)


COMPRESSED: dict[str, dict[str, Any]] = {
    "4 bits in groups": {"num_bits": 4, "strategy": "group", "group_size": 32},
    "4 bits, asymmetric": {
        "num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False,
    },
    "4 bits a channel": {"num_bits": 4, "strategy": "channel"},
    "8 bits packed": {"num_bits": 8, "strategy": "channel", "format": "pack-quantized"},
    "3 bits": {"num_bits": 3, "strategy": "group", "group_size": 32},
    "int8 a channel": {"num_bits": 8, "strategy": "channel", "format": "int-quantized"},
    "int8, asymmetric": {
        "num_bits": 8, "strategy": "channel", "symmetric": False, "format": "int-quantized",
    },
    "float8 a channel": {
        "num_bits": 8, "type": "float", "strategy": "channel", "format": "float-quantized",
    },
    "float8 a tensor": {
        "num_bits": 8, "type": "float", "strategy": "tensor", "format": "float-quantized",
    },
    "float8 in blocks": {
        "num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 32],
        "format": "float-quantized",
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", COMPRESSED)
def test_compressed_tensors_mean_what_their_library_says(layout, tmp_path):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    settings = dict(COMPRESSED[layout])
    name = settings.pop("format", "pack-quantized")
    args = QuantizationArgs(**settings)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=name)
    compressor = BaseCompressor.load_from_registry(name)
    model = make_tiny("llama", tmp_path)

    def ranges(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, columns = weight.shape
        if args.strategy == "tensor":
            return weight.amin().reshape(1), weight.amax().reshape(1)
        if args.strategy == "block":
            high, wide = args.block_structure
            cut = weight.reshape(rows // high, high, columns // wide, wide)
            return cut.amin((1, 3)), cut.amax((1, 3))
        cut = weight.reshape(rows, -1, args.group_size or columns)
        return cut.amin(-1), cut.amax(-1)

    def pack(array: np.ndarray) -> tuple[Parts, np.ndarray]:
        weight = torch.from_numpy(array)
        scale, zero = calculate_qparams(*ranges(weight), args)
        state = {"weight": weight, "weight_scale": scale.to(torch.bfloat16).float()}
        parts = compressor.compress({**state, "weight_zero_point": zero}, scheme)
        return parts, compressor.decompress(dict(parts), scheme)["weight"].float().numpy()

    meant = quantize(tmp_path, pack)
    groups = {"group_0": {"targets": ["Linear"], "weights": args.model_dump(mode="json")}}
    configure(
        tmp_path,
        quantization_config={
            "quant_method": "compressed-tensors", "format": name, "config_groups": groups,
        },
    )  # fmt: skip
    assert_meant(tmp_path, model, meant)


def test_a_packed_checkpoint_is_exported_and_answers_as_it_means(tmp_path):
    from edgesdk_export.pipeline import ExportJob, export
    from edgesdk_export.progress import SilentProgress

    make_tiny("qwen3", tmp_path / "hf", attention_bias=False)
    quantize(tmp_path / "hf", lambda w: gptq(w, 4, 32))
    configure(tmp_path / "hf", quantization_config=GPTQ)
    for kind in ("onnx", "gguf"):
        job = ExportJob(tmp_path / "hf", tmp_path / kind, "packed", format=kind, quality_tokens=0)
        bundle = export(job, SilentProgress())
        assert bundle.manifest.source.dtypes == ("F32", "GPTQ4")
        assert "quantized before (GPTQ4)" in bundle.manifest.notes[0]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, which is not read"),
        ({"quant_method": "hqq"}, "hqq, which is not read"),
        ({"bits": 4}, "an unnamed method"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "gptq in the layout 'marlin'"),
        ({**AWQ, "version": "gemv"}, "awq in the layout 'gemv'"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "'marlin-24'"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt NVFP4"),
        (GPTQ, "no tensor is packed"),
        ("gptq", "quantization_config = 'gptq' is not an object"),
    ],
)
def test_what_is_not_read_is_named(settings, what, tmp_path):
    make_tiny("llama", tmp_path)
    configure(tmp_path, quantization_config=settings)
    with pytest.raises(CheckpointError, match=what):
        open_checkpoint(tmp_path)


def test_packed_without_a_word_about_how(tmp_path):
    make_tiny("llama", tmp_path)
    quantize(tmp_path, lambda w: gptq(w, 4, 32))
    with pytest.raises(CheckpointError, match=r"qweight' is packed, but neither") as refused:
        open_checkpoint(tmp_path)
    assert "Download all" in str(refused.value.hint)


def test_quantized_for_mlx(tmp_path):
    make_tiny("llama", tmp_path)

    def pack(weight: np.ndarray) -> tuple[Parts, np.ndarray]:
        words = torch.zeros(len(weight), 8, dtype=torch.int32)
        scales, biases = torch.zeros(len(weight), 1), torch.zeros(len(weight), 1)
        return {"weight": words, "scales": scales, "biases": biases}, weight

    quantize(tmp_path, pack)
    with pytest.raises(CheckpointError, match="quantized with MLX"):
        open_checkpoint(tmp_path)


def test_sizes_of_the_case_that_contradict_each_other(tmp_path):
    # Zero-points for 8 outputs a word, but groups of 128 of 64 inputs: as in a hand-made folder.
    make_tiny("llama", tmp_path)

    def pack(weight: np.ndarray) -> tuple[Parts, np.ndarray]:
        parts, meant = gptq(weight, 4, 32)
        return {**parts, "qzeros": parts["qzeros"][:, :-1]}, meant

    quantize(tmp_path, pack)
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "desc_act": true}')
    with pytest.raises(ConfigMismatch, match=r"cannot be dequantized: its shapes.*qzeros I32"):
        open_checkpoint(tmp_path)


def test_no_parts_give_another_exception(tmp_path):
    draw = random.Random(0)
    names = [
        "qweight",
        "qzeros",
        "scales",
        "g_idx",
        "weight",
        "weight_packed",
        "weight_scale",
        "weight_scale_inv",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
        "bias",
    ]
    integers = {"weight_shape": torch.int64, "weight": torch.float8_e4m3fn, "scales": torch.float16}
    others = [torch.int8, torch.bfloat16, torch.uint8, torch.float32, torch.float16]
    for _ in range(400):
        parts = {}
        for name in draw.sample(names, draw.randint(1, 6)):
            kind = integers.get(name, torch.int32)
            shape = [draw.choice([0, 1, 2, 4, 8, 32]) for _ in range(draw.choice([0, 1, 2, 2, 3]))]
            values = torch.rand(shape) * draw.choice([0, 64])
            parts[f"a.{name}"] = values.to(kind if draw.random() < 0.7 else draw.choice(others))
        save_file(parts, tmp_path / WHOLE)
        settings = {
            "quant_method": draw.choice(["gptq", "awq", "fp8", "compressed-tensors"]),
            "bits": draw.choice([4, 8, 3, 0, None, "x"]),
            "group_size": draw.choice([32, -1, 0, None, "x"]),
            "weight_block_size": draw.choice([[16, 16], [0, 1], None, "x"]),
            "config_groups": draw.choice([None, {"a": {"weights": {"num_bits": 4}}}, {"a": 3}]),
        }
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
        with contextlib.suppress(CheckpointError):
            for tensor in open_checkpoint(tmp_path).tensors.values():
                if len(tensor.shape) == 2:
                    assert tensor.rows(0, tensor.shape[0]).shape == tensor.shape


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
def test_a_missing_part_is_named(part, tmp_path):
    make_tiny("llama", tmp_path)

    def pack(weight: np.ndarray) -> tuple[Parts, np.ndarray]:
        parts, meant = gptq(weight, 4, 32)
        del parts[part]
        return parts, meant

    quantize(tmp_path, pack)
    configure(tmp_path, quantization_config=GPTQ)
    with pytest.raises(CheckpointError, match=rf"{part} is missing|no tensor is packed"):
        open_checkpoint(tmp_path)
