"""Install onnxruntime-genai in an environment of its own, and build its int4 model of a GGUF."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

PINS = (
    "onnxruntime-genai==0.18.0",
    "torch==2.13.0",
    "transformers>=5.2,<6",
    "onnx_ir",
    "gguf",
    "accelerate",  # transformers wants it for reading a GGUF
)

# The builder wants a Hugging Face folder; transformers dequantizes the GGUF into one.
_UNPACK = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, name, out = sys.argv[1:]
read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
# What came from a GGUF still counts as quantized and may not be saved: move it to a plain model.
if hasattr(read.config, "quantization_config"):
    del read.config.quantization_config
plain = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
plain.load_state_dict(read.state_dict())
plain.save_pretrained(out)
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
"""


def genai_python(work: Path) -> Path:
    """The Python of an environment with onnxruntime-genai; made in `work` if it is not there."""
    folder = work / "genai-env"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    done = folder / "complete"
    if not done.exists():
        print("installing onnxruntime-genai ...", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        _run([python, "-m", "pip", "install", "-q", "--no-compile", *PINS])
        done.touch()
    return python


# The builder's own default, and edgesdk's formats: zero-points, and an 8-bit head.
RECIPES = {
    "default": (),
    "same-formats": ("algo_config=rtn_last", "is_symmetric=false"),
    "k-quant": ("algo_config=k_quant",),
    "k-quant-mixed": ("algo_config=k_quant_mixed",),
}


def genai_int4(python: Path, gguf: Path, work: Path, recipe: str) -> Path:
    """The folder of genai's own int4 CPU build of `gguf`; made if it is not there."""
    out = work / f"{gguf.stem}-genai-int4-{recipe}"
    if not (out / "genai_config.json").exists():
        print("building genai's int4 model ...", file=sys.stderr)
        unpacked = work / f"{gguf.stem}-hf"
        _run([python, "-c", _UNPACK, gguf.resolve().parent, gguf.name, unpacked])
        builder = [python, "-m", "onnxruntime_genai.models.builder", "-m", unpacked, "-o", out]
        builder += ["-p", "int4", "-e", "cpu", "-c", work / "builder-cache"]
        options = RECIPES[recipe]
        _run([*builder, *(["--extra_options", *options] if options else [])])
    return out


def _run(command: list[object]) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)
