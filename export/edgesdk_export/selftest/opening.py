"""Open a written bundle as an app opens it, and let it answer once.

A file whose logits are right may still have a tokenizer, a template or a manifest that no engine
takes; such a bundle is of no use to anyone.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgesdk.bundle.opening import open_bundle
from edgesdk.engines.devices import DEFAULT_TARGET
from edgesdk.errors import ContextOverflow, EdgeError, ExportError, TemplateError
from edgesdk.loading import load
from edgesdk_export.progress import ExportProgress
from edgesdk_export.selftest.worker import call_in_process
from edgesdk_export.tokenizers.settling import CONVERSATIONS, QUESTION

if TYPE_CHECKING:
    from edgesdk.model import Model

# onnxruntime lays out a model's weights anew in memory, and a process does not give all of it back.
_LARGE_BYTES = 64 * 2**20
_TOKENS = 2
_HINT = "This is a fault of the export; please report it with the checkpoint's name."


@dataclass(frozen=True)
class OpeningFailure:
    """Why a bundle does not open. `kind` is the error's class."""

    kind: str
    message: str
    hint: str | None


def check_opens(folder: Path, progress: ExportProgress) -> None:
    """Open the sealed bundle in `folder` with `edgesdk.load`, and answer a question with it.

    Where its engine is not installed, its device is not here, or the memory of this one does not
    hold the model, the stage says so, and the rest of the self-test has to do.

    Raises:
        ExportError: it does not open, or does not answer; with the reason.
    """
    bundle = open_bundle(folder)
    apart = bundle.manifest.format == "gguf" or bundle.size > _LARGE_BYTES
    if bundle.manifest.format == "gguf" and importlib.util.find_spec("llama_cpp") is None:
        progress.stage("Not opened: llama-cpp-python is not installed", 1)
        progress.advance(1)
        return
    progress.stage("Opening the bundle", 1)
    if apart:
        doing = "The bundle was written, but an app cannot use it: opening it"
        failure = call_in_process(open_and_answer, folder, doing=doing, hint=_HINT)
    else:
        failure = open_and_answer(folder)
    progress.advance(1)
    if failure is None:
        return
    if failure.kind in ("NotEnoughMemory", "DeviceUnavailable"):
        progress.stage(f"Not opened: {failure.message.replace(str(folder), 'it')}", 1)
        progress.advance(1)
        return
    message = failure.message.replace(f"{folder}/", "")
    raise ExportError(
        f"The bundle was written, but an app cannot use it: {message}", hint=failure.hint or _HINT
    )


def open_and_answer(folder: Path) -> OpeningFailure | None:
    """Load a bundle and ask it something; None where it answers."""
    try:
        # By its name a device is taken in software too. An NPU may be another machine's, and take
        # minutes for its first start.
        manifest = open_bundle(folder).manifest
        device = manifest.target if manifest.format != "onnx" else DEFAULT_TARGET
        with load(folder, device=device) as model:
            _answer(model)
    except ContextOverflow:
        # It reads prompts; this one is longer than its context.
        return None
    except EdgeError as error:
        return OpeningFailure(type(error).__name__, error.message, error.hint)
    except Exception as error:
        return OpeningFailure(type(error).__name__, f"{type(error).__name__}: {error}", None)
    return None


def _answer(model: Model) -> None:
    if model.runtime.encoder.template is None:
        model.complete(QUESTION, max_tokens=_TOKENS)
        return
    for messages in CONVERSATIONS[:-1]:
        try:
            model.respond(messages, max_tokens=_TOKENS)
        except TemplateError:
            continue
        return
    model.respond(CONVERSATIONS[-1], max_tokens=_TOKENS)
