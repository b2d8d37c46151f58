"""Finds out which devices there are: each provider is probed, and none can take the app down.

A provider's library may crash or hang while it looks for its device. So most probes run in a
process of their own, with a timeout. Packages that are absent cost no process.
"""

from __future__ import annotations

import base64
import functools
import importlib.metadata
import importlib.util
import json
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import cast

from edgesdk.engines import devices as known
from edgesdk.engines.devices import DeviceProbe, DeviceRecord, Kind, State, imported
from edgesdk.engines.probes import not_installed

# A first start of a driver may take ten of them.
_TIMEOUT_SECONDS = 30.0
# Marks the line with the answer: libraries print lines of their own.
_MARK = "edgesdk-probe:"
_PROBES_AT_ONCE = 4


@dataclass(frozen=True)
class Device:
    """One provider of this machine, and how far it works.

    Attributes:
        name: the provider, such as "Qualcomm QNN".
        device: what `edgesdk.load(device=...)` calls it.
        found: the version and the devices, or what is wrong.
        advice: what to do; None where nothing is to be done.
        runs_models: whether edgesdk has an engine for it.
    """

    name: str
    device: str
    kind: Kind
    state: State
    found: str
    advice: str | None
    runs_models: bool


def devices() -> tuple[Device, ...]:
    """Find out which devices this machine has; takes some seconds. Nothing is loaded for good.

    Returns:
        One for each provider that edgesdk knows, the best first, also those that are absent.
    """
    return tuple(
        Device(
            record.name,
            record.device,
            record.kind,
            found.state,
            found.found,
            found.advice,
            runs_models=bool(record.runs),
        )
        for record, found in probe_all()
    )


def probe_all() -> list[tuple[DeviceRecord, DeviceProbe]]:
    """Probe each provider that edgesdk knows, several at once."""
    with ThreadPoolExecutor(_PROBES_AT_ONCE) as pool:
        return list(zip(known.DEVICES, pool.map(probe, known.DEVICES), strict=True))


def probe(record: DeviceRecord) -> DeviceProbe:
    """Find out how far a provider works here."""
    if _is_absent(record):
        return not_installed(record)
    if record.isolated:
        return _probe_in_process_of_its_own(record)
    try:
        return run_probe(record)
    except Exception as error:
        return _broken(record, str(error) or type(error).__name__)


def _is_absent(record: DeviceRecord) -> bool:
    """Whether the provider's package is not installed; looks at folders only."""
    if record.module is not None:
        return importlib.util.find_spec(record.module) is None
    if not record.isolated or record.package is None:
        return False
    try:
        importlib.metadata.distribution(record.package)
    except importlib.metadata.PackageNotFoundError:
        return True
    return False


def run_probe(record: DeviceRecord) -> DeviceProbe:
    """Run a record's probe in this process."""
    return cast("Callable[[DeviceRecord], DeviceProbe]", imported(record.probe))(record)


@functools.cache
def _probe_in_process_of_its_own(record: DeviceRecord) -> DeviceProbe:
    pickled = base64.b64encode(pickle.dumps(record)).decode()
    command = [sys.executable, "-c", _CODE, json.dumps(sys.path), pickled]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _broken(record, f"it did not answer within {_TIMEOUT_SECONDS:g} s")
    except OSError as error:
        return _broken(record, f"it cannot be probed: {error}")
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            finding = json.loads(line.removeprefix(_MARK))
            return DeviceProbe(**finding | {"kinds": tuple(finding["kinds"])})
    return _broken(record, _last_words(done))


def _broken(record: DeviceRecord, what: str) -> DeviceProbe:
    advice = (
        None if record.package is None else f"Run: pip install --force-reinstall {record.package}"
    )
    return DeviceProbe("broken", what, advice)


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0:
        return f"it crashed ({signal.Signals(-done.returncode).name})"
    return lines[-1] if lines else f"its probe ended with exit code {done.returncode}"


_CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from edgesdk.engines.discovery import print_probe
print_probe(sys.argv[2])
"""


def print_probe(pickled: str) -> None:
    """Probe a provider, given its record, and print the finding; for a process of its own."""
    finding = run_probe(pickle.loads(base64.b64decode(pickled)))
    sys.stdout.write(f"{_MARK}{json.dumps(asdict(finding))}\n")
