"""A GPU in software, for tests of WebGPU on machines without one: made once, kept for later runs.

The GPU is SwiftShader, which Debian's chromium-common has. onnxruntime finds GPUs in /sys only; so
a process gets a /sys/class/drm with a card in it, in a mount namespace of its own.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

_PACKAGES = ("onnxruntime-ep-webgpu==0.4.0",)
_DEBIAN = "chromium-common"
# The vendor that onnxruntime finds is SwiftShader's.
_FAKE_CARD = """
set -e
mount -t tmpfs none "$1"
mkdir -p "$1/class/drm/card0/device"
for each in /sys/class/*; do
  [ "${each##*/}" = drm ] || ln -s "$(readlink -f "$each")" "$1/class/${each##*/}"
done
echo 0x1ae0 > "$1/class/drm/card0/device/vendor"
echo 0xc0de > "$1/class/drm/card0/device/device"
echo 0x030000 > "$1/class/drm/card0/device/class"
mount --bind "$1/class" /sys/class
shift
exec "$@"
"""


@dataclass(frozen=True)
class SoftwareGpu:
    """A folder with the provider's package and SwiftShader."""

    folder: Path

    def run(
        self, *command: str, timeout: float, card: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run Python with `command` where the provider is installed, and a GPU is listed or not."""
        chromium = self.folder / "debian" / "usr" / "lib" / "chromium"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(self.folder / "site"), *sys.path]),
            "LD_LIBRARY_PATH": str(chromium),
            "VK_ICD_FILENAMES": str(chromium / "vk_swiftshader_icd.json"),
        }
        # A worker of pytest-xdist runs tests that know nothing of it.
        for name in [name for name in environment if name.startswith("PYTEST_")]:
            del environment[name]
        mount = self.folder / "mount"
        mount.mkdir(exist_ok=True)
        fake = ["sh", "-c", _FAKE_CARD, "sh", str(mount)] if card else []
        return subprocess.run(
            ["unshare", "-m", "--propagation", "private", *fake, sys.executable, *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            check=False,
        )


@functools.cache
def software_gpu() -> SoftwareGpu | str:
    """The software GPU, or why there can be none here."""
    for tool in ("unshare", "apt-get", "dpkg"):
        if shutil.which(tool) is None:
            return f"SwiftShader comes from Debian, and {tool} is not here"
    trial = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "mount", "-t", "tmpfs", "none", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    if trial.returncode:
        return f"no mount namespace of its own may be made here: {trial.stderr.strip()}"
    version = hashlib.sha256(repr((_PACKAGES, _DEBIAN)).encode()).hexdigest()[:12]
    folder = Path.home() / ".cache" / "edgesdk-tests" / f"webgpu-{version}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            beside = folder.with_suffix(".unfinished")
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            failed = _fill(beside)
            if failed is not None:
                return failed
            beside.rename(folder)
    return SoftwareGpu(folder)


def _fill(folder: Path) -> str | None:
    """Get the packages into `folder`; say what failed, if anything."""
    update = f"apt-get update -qq && apt-get download -q {_DEBIAN}"
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps")
    for command in (
        (*install, "--target", str(folder / "site"), *_PACKAGES),
        # Its lists may be old, or absent.
        ("sh", "-c", f"apt-get download -q {_DEBIAN} || {{ {update}; }}"),
        ("sh", "-c", "dpkg -x ./*.deb debian && rm ./*.deb"),
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or "no words").splitlines()[-1]
            return f"'{' '.join(command[:4])} ...' failed: {said}"
    return None
