"""The text that calibration runs: the user's, or one that lies at hand."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

from edgesdk.errors import ExportError
from edgesdk_export.quality.text import EvaluationText, Windows, cut_windows

# With fewer, second moments say more about the text than about the model.
FEWEST_TOKENS = 2_048
DEFAULT_TOKENS = 8_192

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
    tokens: int = DEFAULT_TOKENS,
) -> Windows:
    """The first `tokens` tokens of a text (or a window more), in equal windows.

    Raises:
        ExportError: it is shorter than calibration needs; the message has both numbers.
    """
    windows = cut_windows(text, tokenizer_json, tokens=tokens, bos=bos, context=context)
    # A window that is not full is dropped, so the text may hold almost one window more.
    given, needed = int(windows.ids.size), min(FEWEST_TOKENS, tokens)
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
