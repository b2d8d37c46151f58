"""Quantize the same fp32 weights with other tools: llama.cpp's quantizer and genai's builder."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
from gguf import LlamaFileType

from benchmarks.export.genai_build import genai_int4

# Name in the table -> what llama-quantize calls it.
LLAMA_TYPES = {
    "llama.cpp Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M,
    "llama.cpp Q4_0": LlamaFileType.MOSTLY_Q4_0,
}
# Name in the table -> the recipe of `genai_build.RECIPES`.
GENAI_RECIPES = {
    "genai int4": "default",
    "genai k_quant": "k-quant",
    "genai k_quant_mixed": "k-quant-mixed",
}


def llama_quantized(source: Path, target: Path, kind: LlamaFileType) -> Path:
    """A GGUF of llama.cpp's own quantizer, without an importance matrix; `source` is F32."""
    if not target.exists():
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = int(kind)
        beside = target.with_suffix(".part")
        status = llama_cpp.llama_model_quantize(str(source).encode(), str(beside).encode(), params)
        if status:
            raise SystemExit(f"llama_model_quantize of {source} gives {status}")
        beside.rename(target)
    return target


def genai_built(python: Path, source: Path, work: Path, recipe: str) -> Path:
    """The model file of onnxruntime-genai's builder."""
    return genai_int4(python, source, work, recipe) / "model.onnx"
