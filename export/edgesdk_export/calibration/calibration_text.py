"""Get the text that calibration runs: a given one, a built-in one, or one that the model generates.

Text sampled from a model shows its inputs as it will meet them, in whatever it was trained on
(data-free calibration: Liu et al., 2023, arXiv:2305.17888; Williams et al., 2024,
arXiv:2410.17170). An 8-bit copy generates it, several texts side by side.
"""

from __future__ import annotations

import ast
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from edgesdk.bundle import graph_io
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.engines.devices import HOST_PROVIDER
from edgesdk.errors import ExportError
from edgesdk_export.onnx import WeightScheme, write_decoder
from edgesdk_export.quality.evaluation_text import WINDOW, EvaluationText, Windows, cut_windows
from edgesdk_export.weights import Decoder

# With fewer, second moments say more about the text than about the model.
MIN_CALIBRATION_TOKENS = 2_048
DEFAULT_CALIBRATION_TOKENS = 8_192

# Modules whose docstrings are long and mostly prose, on many subjects.
_MODULES = (
    "argparse",
    "collections/__init__",
    "contextlib",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "doctest",
    "fractions",
    "functools",
    "heapq",
    "imaplib",
    "inspect",
    "ipaddress",
    "locale",
    "logging/__init__",
    "mailbox",
    "optparse",
    "os",
    "pathlib",
    "pdb",
    "pickletools",
    "platform",
    "random",
    "sched",
    "smtplib",
    "socket",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "textwrap",
    "threading",
    "traceback",
    "turtle",
    "typing",
    "unittest/case",
    "unittest/mock",
    "urllib/request",
    "uuid",
    "wave",
    "weakref",
    "zipfile",
)


def calibration_windows(
    text: EvaluationText,
    tokenizer_json: bytes,
    *,
    bos: int | None,
    context: int,
    tokens: int = DEFAULT_CALIBRATION_TOKENS,
) -> Windows:
    """The first `tokens` tokens of a text (or a window more), in equal windows.

    Raises:
        ExportError: it is shorter than calibration needs; the message has both numbers.
    """
    windows = cut_windows(text, tokenizer_json, tokens=tokens, bos=bos, context=context)
    # A window that is not full is dropped, so the text may hold almost one window more.
    given, needed = int(windows.ids.size), min(MIN_CALIBRATION_TOKENS, tokens)
    if given < needed:
        raise ExportError(
            f"The calibration text {text.name!r} gives {given} tokens in whole windows; "
            f"calibration needs {needed}.",
            hint="Give a longer text.",
        )
    return windows


def builtin_calibration_text() -> EvaluationText:
    """Docstrings of Python's standard library: English prose and some code, on many subjects.

    It shares no page with the text that quality is measured on by default.
    """
    library = Path(sysconfig.get_path("stdlib"))
    texts = []
    for module in _MODULES:
        path = library / f"{module}.py"
        if path.is_file():
            texts += _docstrings(path.read_text(encoding="utf-8"))
    if not texts:
        raise ExportError(
            "This Python carries no sources of its library to calibrate with.",
            hint="Give a calibration text.",
        )
    return EvaluationText(name="docstrings of Python's library", text="\n\n".join(texts))


def _docstrings(source: str) -> list[str]:
    """Docstrings of a module and what it defines, in order; short ones are left out."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None and len(text) > 200:
                found.append(text)
    return found


GENERATED_NAME = "the model's own writing"

_TEMPERATURE = 0.9
# Texts written together; their KV cache is in memory at once.
_BATCH = 8


def generate_calibration_text(
    decoder: Decoder, folder: Path, *, bos: int | None, tokens: int, seed: int = 0
) -> Windows:
    """Sample windows of text from a decoder.

    Args:
        folder: where the 8-bit copy lies meanwhile; nothing is left there.
        bos: what each text begins with; None = a random token, another for each text.
        tokens: how many in all, in windows of 512 or the model's context.
    """
    length = min(WINDOW, decoder.spec.context_length)
    count = -(-tokens // length)
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix=".writing.", dir=folder) as name:
        written = write_decoder(decoder, Path(name), WeightScheme.named("int8"))
        writer = _TextSampler(decoder.spec, Path(name) / written.model_file)
        texts = [
            writer.write(_first(decoder.spec, bos, min(_BATCH, count - start), rng), length, rng)
            for start in range(0, count, _BATCH)
        ]
        del writer
    return Windows(np.concatenate(texts))


def _first(
    spec: DecoderSpec, bos: int | None, count: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    if bos is not None:
        return np.full(count, bos, np.int64)
    return rng.integers(0, spec.vocab_size, count)


class _TextSampler:
    """Samples from a written model, several texts at once."""

    def __init__(self, spec: DecoderSpec, model: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._spec = spec
        self._session = onnxruntime.InferenceSession(str(model), options, providers=[HOST_PROVIDER])

    def write(
        self, first: npt.NDArray[np.int64], length: int, rng: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """Texts int64 [batch, length] that begin with `first` [batch]."""
        binding = self._bind_caches(len(first), length)
        texts = np.empty((len(first), length), np.int64)
        texts[:, 0] = first
        for place in range(length - 1):
            feeds = {
                graph_io.INPUT_IDS: np.ascontiguousarray(texts[:, place : place + 1]),
                graph_io.LOGITS_FROM: np.zeros(1, np.int64),
                graph_io.SEQLENS_K: np.full(len(first), place, np.int32),
                graph_io.TOTAL_SEQUENCE_LENGTH: np.array(place + 1, np.int32),
            }
            for name, value in feeds.items():
                binding.bind_cpu_input(name, value)
            self._session.run_with_iobinding(binding)
            logits = binding.get_outputs()[self._logits].numpy()[:, -1]
            texts[:, place + 1] = _sample(logits, rng)
        return texts

    def _bind_caches(self, batch: int, capacity: int) -> onnxruntime.IOBinding:
        spec, binding = self._spec, self._session.io_binding()
        shape = (batch, spec.kv_heads, capacity, spec.head_size)
        for layer in range(spec.layers):
            pairs = zip(graph_io.past_names(layer), graph_io.present_names(layer), strict=True)
            for past, present in pairs:
                cache = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
                binding.bind_ortvalue_input(past, cache)
                binding.bind_ortvalue_output(present, cache)
        # Outputs come back in the order in which they were bound.
        self._logits = 2 * spec.layers
        binding.bind_output(graph_io.LOGITS)
        return binding


def _sample(logits: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """One token for each row, by the Gumbel trick."""
    noise = rng.gumbel(size=logits.shape)
    picked: npt.NDArray[np.int64] = (logits / _TEMPERATURE + noise).argmax(axis=-1)
    return picked
