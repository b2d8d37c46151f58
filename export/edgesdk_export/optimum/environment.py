"""Make the virtual environment that optimum runs in.

optimum-onnx 0.1.0 works with transformers 4.57 only, which conflicts with everything else that
edgesdk's extras install. So it lives in an environment of its own, made once with the standard
library's venv and pip (with the index that pip is configured for), and reused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from edgesdk.errors import ExportError
from edgesdk_export.failure_cause import cause_of
from edgesdk_export.progress import ExportProgress

VARIABLE = "EDGESDK_OPTIMUM_ENV"

# What must match exactly (the exported graph depends on it), then what only has to work with it.
EXACT = {
    "optimum": "2.1.0",
    "optimum-onnx": "0.1.0",
    "transformers": "4.57.6",
    "torch": "2.13.0",
}
PINS = (
    *(f"{name}=={version}" for name, version in EXACT.items()),
    "onnx>=1.19,<2",
    "onnxruntime>=1.23,<2",
)
_DISK_BYTES = 3 * 2**30
# How many packages the pins come down to: the length of the progress bar.
_PACKAGES = 33
_OWN_ENVIRONMENT = f"Or set {VARIABLE} to an environment that has {', '.join(PINS)}."


def ready_environment(progress: ExportProgress, *, place: Path | None = None) -> Path:
    """The Python executable of an environment with optimum's pins; made if there is none yet.

    The variable EDGESDK_OPTIMUM_ENV (an environment's folder, or its Python) comes first, then
    `place`, then a folder in the user's cache that is named after the pins. Making it takes about
    a minute and 1.2 GB with CPU builds of torch.

    Args:
        place: where the environment is, or is to be made.

    Raises:
        ExportError: the environment cannot be made (no network, no space, an unsupported Python),
            or the one that was named has other versions.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return _named_environment(Path(named))
    folder = place or user_cache_path("edgesdk") / f"optimum-{_pins_hash()}"
    python = _python_of(folder)
    if python.exists():
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.stage("Waiting for another process that makes optimum's environment", 1)
        lock.acquire()
    try:
        if not python.exists():
            _make(folder, progress)
    finally:
        lock.release()
    return python


def _make(folder: Path, progress: ExportProgress) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < _DISK_BYTES:
        raise ExportError(
            f"optimum's environment needs {_DISK_BYTES / 1e9:.1f} GB in {folder.parent}, which has"
            f" {free / 1e9:.1f} GB free.",
            hint="Free some space, or point the cache elsewhere.",
        )
    # Complete environments arrive by rename; one that was killed halfway is never mistaken for
    # one. Only `bin/python -m ...` is used, so scripts that remember their old path do no harm.
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        progress.stage("Installing optimum in an environment of its own, once", _PACKAGES)
        created = subprocess.run(
            [sys.executable, "-m", "venv", str(partial)],
            capture_output=True,
            text=True,
            check=False,
        )
        if created.returncode:
            raise ExportError(
                f"python -m venv failed: {cause_of(created.stderr or created.stdout)}.",
                hint="Install the venv module of this Python (on Debian: python3-venv)."
                f" {_OWN_ENVIRONMENT}",
            )
        _install(_python_of(partial), progress)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _install(python: Path, progress: ExportProgress) -> None:
    command = [str(python), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    # Only a part of torch is ever imported: compiling all of it takes longer than installing it.
    command += ["--no-compile", "--disable-pip-version-check", *PINS]
    tail: deque[str] = deque(maxlen=60)
    collected = 0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            tail.append(line.strip())
            if line.startswith("Collecting"):
                collected = min(collected + 1, _PACKAGES - 1)
                progress.advance(collected)
    if pip.returncode:
        raise pip_failure("\n".join(tail))
    progress.advance(_PACKAGES)


def pip_failure(output: str) -> ExportError:
    """Make the error for a failed `pip install` from what pip printed last."""
    lowered = output.lower()
    unreachable = (
        "connection",
        "temporary failure",
        "name resolution",
        "timed out",
        "ssl",
        "proxy",
    )
    if "no space left" in lowered:
        why, hint = "the disk is full", "Free some space and try again."
    elif any(word in lowered for word in unreachable):
        why = "the package index could not be reached"
        hint = "Check the network and pip's index settings (pip config list)."
    elif "no matching distribution" in lowered or "requires-python" in lowered:
        why = cause_of(output)
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        hint = (
            f"This is Python {here}; these packages may not exist for it: run edgesdk with"
            " Python 3.10 to 3.13."
        )
    else:
        why, hint = cause_of(output), "pip's message says what is wrong."
    return ExportError(
        f"optimum's environment could not be installed: {why}.", hint=f"{hint} {_OWN_ENVIRONMENT}"
    )


def _named_environment(named: Path) -> Path:
    python = _python_of(named) if named.is_dir() else named
    if not python.is_file():
        raise ExportError(
            f"{VARIABLE} names {named}, where no Python is.",
            hint="Set it to a virtual environment's folder, or unset it to have one made.",
        )
    script = (
        "import importlib.metadata as m, json, sys\n"
        "def v(n):\n"
        "    try: return m.version(n)\n"
        "    except m.PackageNotFoundError: return None\n"
        "print(json.dumps({n: v(n) for n in sys.argv[1:]}))"
    )
    found = subprocess.run(
        [str(python), "-c", script, *EXACT], capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise ExportError(
            f"{VARIABLE}: {python} does not run: {cause_of(found.stderr)}.",
            hint="Unset it to have an environment made.",
        )
    versions: dict[str, str | None] = json.loads(found.stdout)
    wrong = [
        f"{name} {versions[name] or 'missing'} (needs {wanted})"
        for name, wanted in EXACT.items()
        if (versions[name] or "").partition("+")[0] != wanted
    ]
    if wrong:
        raise ExportError(
            f"The environment that {VARIABLE} names has {', '.join(wrong)}.",
            hint="Install these versions there, or unset the variable to have one made.",
        )
    return python


def _python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _pins_hash() -> str:
    text = json.dumps([PINS, sys.version_info[:2]])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
