"""`edgesdk doctor`: check what works on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click
import psutil

from edgesdk import __version__
from edgesdk.cli.output import format_bytes, print_json, result_console
from edgesdk.engines.device_choice import kept_choices
from edgesdk.engines.devices import HOST_PROVIDER
from edgesdk.engines.discovery import probe_all
from edgesdk.engines.npu.compile_cache import CompileCache
from edgesdk.store import Store
from edgesdk.store.disk import folder_size
from edgesdk.system.resources import cpu_info

_EPILOG = """\b
Examples:
  edgesdk doctor
  edgesdk doctor --json

The exit code is 1 when something that every model needs is broken.
"""
Status = Literal["ok", "warn", "missing"]
_STYLES = {"ok": "green", "warn": "yellow", "missing": "red"}
# onnxruntime's wheels are manylinux_2_28.
_OLDEST_GLIBC = (2, 28)
_LOW_MEMORY = 1_500_000_000
_LOW_DISK = 2_000_000_000
_CPU_FEATURES = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
_EXPORT_PACKAGES = ("onnx", "onnx_ir", "safetensors", "gguf", "sentencepiece")


@click.command("doctor", epilog=_EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(as_json: bool) -> int:
    """Check what works on this machine, what does not, and how to mend it."""
    checks = list(run_checks(Store()))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        out = result_console()
        for check in checks:
            out.print(f"{check.status:<8}", style=_STYLES[check.status], end="")
            out.print(f"{check.name:<17} {check.found}")
            if check.advice is not None:
                out.print(f"{'':<25} -> {check.advice}")
    return 1 if any(check.needed and check.status == "missing" for check in checks) else 0


@dataclass(frozen=True)
class DoctorCheck:
    """One finding.

    Attributes:
        status: "ok"; "warn": works, but read the advice; "missing": this does not work.
        advice: what to do, or None.
        needed: without it edgesdk does not work at all.
    """

    name: str
    status: Status
    found: str
    advice: str | None = None
    needed: bool = False


def run_checks(store: Store) -> Iterator[DoctorCheck]:
    """Every check, in the order in which a person reads them."""
    yield _python()
    if sys.platform == "linux":
        yield _libc()
    yield from _providers()
    yield from _choices()
    yield _export_extra()
    yield _processor()
    yield _memory()
    yield _store(store)
    compiled = _compiled()
    if compiled is not None:
        yield compiled
    yield _disk(store)
    battery = _battery()
    if battery is not None:
        yield battery


def _python() -> DoctorCheck:
    found = f"Python {platform.python_version()} on {platform.platform(terse=True)}"
    return DoctorCheck("edgesdk", "ok", f"{__version__}, {found}")


def _libc() -> DoctorCheck:
    kind, version = platform.libc_ver()
    if kind != "glibc":
        return DoctorCheck(
            "C library",
            "warn",
            kind or "not glibc",
            "onnxruntime publishes wheels for glibc only; use a Debian or Ubuntu image.",
        )
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < _OLDEST_GLIBC:
        advice = "onnxruntime's current wheels need glibc 2.28; upgrade the system."
        return DoctorCheck("C library", "warn", f"glibc {version}", advice)
    return DoctorCheck("C library", "ok", f"glibc {version}")


def _providers() -> Iterator[DoctorCheck]:
    """Each provider that is installed, or that an extra installs; and one line for all others."""
    absent = []
    for record, probe in probe_all():
        # Every machine has a processor; what drives other devices is there or not.
        needed = record.provider == HOST_PROVIDER
        if probe.state == "not installed" and not needed and not (record.runs and record.extra):
            absent.append(record.name if record.package is None else f"{record.package}")
            continue
        works = probe.state not in ("broken", "not installed")
        status: Status = "ok" if works else "missing" if needed else "warn"
        found = probe.found if probe.state == "ready" else f"{probe.state}: {probe.found}"
        if not record.runs:
            found += "; edgesdk has no engine for it yet"
        yield DoctorCheck(record.name, status, found, probe.advice, needed=needed)
    if absent:
        yield DoctorCheck("accelerators", "ok", f"not installed: {', '.join(absent)}")


def _choices() -> Iterator[DoctorCheck]:
    """What "auto" chose where it had a choice, and what it measured."""
    for choice in kept_choices():
        found = "; ".join(speed.line() for speed in choice.speeds)
        yield DoctorCheck(
            "auto", "ok", f"{choice.model} runs on {choice.speeds[0].device}: {found}"
        )


def _export_extra() -> DoctorCheck:
    versions = {package: _version(package) for package in _EXPORT_PACKAGES}
    absent = [package for package, version in versions.items() if version is None]
    present = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    if absent:
        found = f"without {', '.join(absent)}"
        return DoctorCheck("export", "warn", found, "To export, run: pip install 'edgesdk[export]'")
    return DoctorCheck("export", "ok", present)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> DoctorCheck:
    fields = cpu_info()
    model = fields.get("model name") or platform.processor() or platform.machine()
    cores = psutil.cpu_count(logical=False) or os.cpu_count()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    telling = " ".join(flag for flag in _CPU_FEATURES if flag in flags)
    found = f"{model}, {cores} cores, {usable} usable threads; {telling or 'features not readable'}"
    if "flags" in fields and "avx2" not in flags:
        return DoctorCheck("processor", "warn", found, "Without AVX2 every model runs slowly here.")
    return DoctorCheck("processor", "ok", found)


def _memory() -> DoctorCheck:
    memory = psutil.virtual_memory()
    found = f"{format_bytes(memory.available)} available of {format_bytes(memory.total)}"
    limit = _cgroup_limit()
    if limit is not None and limit < memory.total:
        found += f", this container may use {format_bytes(limit)}"
    if min(memory.available, limit or memory.available) < _LOW_MEMORY:
        return DoctorCheck(
            "memory", "warn", found, "Close other programs, or use a model under 0.5B."
        )
    return DoctorCheck("memory", "ok", found)


def _cgroup_limit() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _store(store: Store) -> DoctorCheck:
    existing = _nearest_folder(store.root)
    if not os.access(existing, os.W_OK):
        advice = "Set EDGESDK_HOME to a folder that you may write to."
        return DoctorCheck("store", "missing", f"{existing} is not writable", advice, needed=True)
    entries = store.list()
    kinds = [entry.kind for entry in entries]
    size = format_bytes(sum(entry.size for entry in entries))
    found = f"{store.root}: checkpoints: {kinds.count('checkpoint')}"
    found += f", bundles: {kinds.count('bundle')}, {size}"
    broken = [entry.name for entry in entries if entry.problem is not None]
    if broken:
        advice = f"Damaged: {', '.join(broken)}. Remove and get again, see: edgesdk list"
        return DoctorCheck("store", "warn", found, advice)
    unfinished = store.root / "downloads"
    if unfinished.is_dir() and (waste := folder_size(unfinished)):
        found += f"; unfinished pulls hold {format_bytes(waste)}"
    return DoctorCheck("store", "ok", found)


def _compiled() -> DoctorCheck | None:
    """What providers have compiled of models; None where that is nothing."""
    cache = CompileCache()
    entries = cache.entries()
    if not entries:
        return None
    size = format_bytes(sum(entry.size for _, entry in entries))
    limit = format_bytes(cache.max_bytes)
    found = f"{len(entries)} compilations, {size} of at most {limit}; see: edgesdk compile --list"
    return DoctorCheck("compiled models", "ok", found)


def _disk(store: Store) -> DoctorCheck:
    free = shutil.disk_usage(_nearest_folder(store.root)).free
    found = f"{format_bytes(free)} free at the store"
    if free < _LOW_DISK:
        advice = "Free some space, or set EDGESDK_HOME to a folder on another disk."
        return DoctorCheck("disk", "warn", found, advice)
    return DoctorCheck("disk", "ok", found)


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _battery() -> DoctorCheck | None:
    # psutil has no such function on some systems, and fails on some others' drivers.
    read = getattr(psutil, "sensors_battery", None)
    try:
        battery = read() if read is not None else None
    except (OSError, RuntimeError):
        return None
    if battery is None:
        return None
    source = "on mains" if battery.power_plugged else "on battery"
    if not battery.power_plugged and battery.percent < 20:
        advice = "Models run slower and drain it: plug in."
        return DoctorCheck("battery", "warn", f"{battery.percent:.0f} %, {source}", advice)
    return DoctorCheck("battery", "ok", f"{battery.percent:.0f} %, {source}")
