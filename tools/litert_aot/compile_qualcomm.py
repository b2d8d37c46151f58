"""Compile a LiteRT bundle for a Qualcomm NPU ahead of time; for developers, and nothing runs here.

compile_qualcomm.py BUNDLE FOLDER [SOC]        (SM8750 where no SOC is named)

In a Python on Linux x86-64 with ai-edge-litert and onnxruntime-qnn, beside a C compiler.
LiteRT's own package of Qualcomm's SDK downloads it; here its compiler gets the same libraries from
onnxruntime-qnn. One that it names and never calls, libQnnLpai.so, is not among them, and becomes an
empty library.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import types
from importlib.util import find_spec
from pathlib import Path

_MISSING = "libQnnLpai.so"


def link_libraries(folder: Path) -> None:
    """Put all libraries that the compiler needs into one folder."""
    spec = find_spec("onnxruntime_qnn")
    if spec is None or spec.origin is None:
        sys.exit("Run first: pip install onnxruntime-qnn")
    package = Path(spec.origin).parent
    for library in (*package.glob("*.so"), *Path(f"{package}.libs").glob("*")):
        (folder / library.name).symlink_to(library)
    command = ["cc", "-shared", "-x", "c", "/dev/null", "-o", str(folder / _MISSING)]
    subprocess.run(command, check=True)


def main(bundle: str, destination: str, soc: str = "SM8750") -> None:
    """Compile, and say what of each signature the compiler took."""
    with tempfile.TemporaryDirectory() as libraries:
        link_libraries(Path(libraries))
        # What LiteRT asks for the folder of the libraries.
        sdk = types.ModuleType("ai_edge_litert_sdk_qualcomm")
        sdk.path_to_sdk_libs = lambda: libraries  # type: ignore[attr-defined]
        sys.modules[sdk.__name__] = sdk
        from ai_edge_litert.aot import aot_compile
        from ai_edge_litert.aot.vendors.qualcomm import target

        result = aot_compile.aot_compile(
            str(Path(bundle) / "model.tflite"),
            output_dir=destination,
            target=target.Target(target.SocModel[soc]),
            keep_going=True,
        )
        sys.stdout.write(f"{result.compilation_report()}\n")
        sys.exit(0 if result.models_with_backend else 1)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
