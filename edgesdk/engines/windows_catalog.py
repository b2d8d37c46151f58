"""Runs models on the providers of Windows ML's catalog, such as AMD's, Qualcomm's and Intel's.

Windows installs and updates them, and its catalog says where their libraries lie. Each is
registered with onnxruntime under its own name
(https://learn.microsoft.com/windows/ai/new-windows-ml/register-execution-providers), and then
loads graphs as other plugins do.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from edgesdk.bundle.opening import Bundle
from edgesdk.engines import devices
from edgesdk.engines.base import Engine, LoadSettings
from edgesdk.engines.devices import HOST_PROVIDER, DeviceProbe, DeviceRecord, graph_for, imported
from edgesdk.engines.onnx.providers import register
from edgesdk.engines.probes import kind_of, listed_devices, processor_names, real_devices
from edgesdk.engines.registry import EngineOpener
from edgesdk.errors import DeviceUnavailable, EngineError, InvalidOption

# Of `windowsml.EpReadyState`: installed, but not there for this process; and not installed.
_NOT_READY, _NOT_PRESENT = "NotReady", "NotPresent"
_INSTALL = (
    'Run: python -c "import windowsml;'
    ' [each.ensure_ready() for each in windowsml.EpCatalog().find_all_providers()]"'
)
_PROVIDER_OPTION = "provider"


@dataclass(frozen=True)
class CatalogProvider:
    """A provider of the catalog.

    Attributes:
        record: its own: that of the provider which edgesdk knows by this name, or else what the
            catalog's says.
        listed: its devices, as `OrtEpDevice`; none where it cannot be used.
        problem: why not.
    """

    record: DeviceRecord
    listed: tuple[Any, ...] = ()
    problem: str = ""

    @property
    def real(self) -> list[Any]:
        """Those of its devices that are hardware, the best first."""
        return real_devices(self.record, self.listed)

    def line(self) -> str:
        """One line for people."""
        what = f"{self.record.provider} {self.record.version}"
        return f"{what}: {self.problem or processor_names(self.real or self.listed)}"


def catalog_providers(record: DeviceRecord) -> Iterator[CatalogProvider]:
    """Register each installed provider of the catalog; none is downloaded.

    Args:
        record: the catalog's.
    """
    for found in _catalog().find_all_providers():
        known = next((each for each in devices.DEVICES if each.provider == found.name), record)
        own = replace(
            known,
            name=f"{found.name} of {record.name}",
            device=record.device,
            provider=found.name,
            package=record.package,
            version=found.version,
            library=None,
            where=record.where,
        )
        if found.ready_state.name == _NOT_PRESENT:
            yield CatalogProvider(own, problem="Windows has not installed it")
            continue
        try:
            if found.ready_state.name == _NOT_READY:
                found.ensure_ready()
            register(own, Path(found.library_path))
        except (OSError, DeviceUnavailable) as error:
            yield CatalogProvider(own, problem=str(error))
            continue
        listed = tuple(listed_devices(own))
        yield CatalogProvider(own, listed, "" if listed else "it lists no device")


@functools.cache
def _catalog() -> Any:
    """The catalog. Nobody closes it: what it finds is its own, and closing it has crashed with some
    drivers (https://github.com/microsoft/winml-cli/pull/729)."""
    return importlib.import_module("windowsml").EpCatalog()


def probe(record: DeviceRecord) -> DeviceProbe:
    """Which providers the catalog of Windows has for this machine, and what they list."""
    found = list(catalog_providers(record))
    words = "; ".join(each.line() for each in found) or "the catalog has nothing for this machine"
    real = [kind_of(device) for each in found for device in each.real]
    if real:
        kinds = tuple(kind for kind in record.kinds if kind in real)
        return DeviceProbe("ready", words, kinds=kinds)
    if any(each.listed for each in found):
        return DeviceProbe("software", words)
    return DeviceProbe("no device", words, _INSTALL if found else None)


def open_engine(source: Bundle | Path, *, record: DeviceRecord, settings: LoadSettings) -> Engine:
    """Load a bundle on the first provider of the catalog that runs it.

    Hardware comes first, and NPUs before GPUs. The option "provider" names one.

    Raises:
        InvalidOption: the catalog has no provider of that name.
        DeviceUnavailable: none of them can be used here, or runs the model; each with the reason.
        DamagedBundle, MissingExtra: see `edgesdk.engines.onnx.engine.open_engine`.
        EngineError: `source` is no bundle.
    """
    if not isinstance(source, Bundle):
        raise EngineError(f"{source} is not a bundle.", hint="Export the model to a bundle first.")
    options = dict(settings.options)
    name = options.pop(_PROVIDER_OPTION, None)
    found = list(catalog_providers(record))
    chosen = [each for each in found if name in (None, each.record.provider)]
    if not chosen and name is not None:
        has = ", ".join(str(each.record.provider) for each in found) or "none"
        raise InvalidOption(f"Windows ML has no provider {name!r}.", hint=f"It has: {has}.")
    reasons = [each.line() for each in chosen if each.problem]
    for each in _ranked(chosen, record, settings.requested_device):
        passed_over = (*settings.passed_over, *reasons)
        try:
            return _opener(source)(
                source,
                record=each.record,
                settings=replace(settings, options=options, passed_over=passed_over),
            )
        except EngineError as error:
            reasons.append(f"{each.record.provider}: {error.message}")
    raise DeviceUnavailable(
        f"No provider of Windows ML runs {source.path}. {'. '.join(reasons)}".rstrip("."),
        hint=f"{_INSTALL}; or see: edgesdk doctor",
    )


def _ranked(
    providers: list[CatalogProvider], record: DeviceRecord, requested: str
) -> list[CatalogProvider]:
    """Those that list devices of the kind that was asked for, the best first."""
    kinds = record.kinds
    works = [each for each in providers if each.listed]
    if requested in kinds:
        works = [each for each in works if requested in map(kind_of, each.real)]
    return sorted(
        works,
        key=lambda each: min((kinds.index(kind_of(one)) for one in each.real), default=len(kinds)),
    )


def _opener(bundle: Bundle) -> EngineOpener:
    """What loads such a graph on any provider of onnxruntime, as it does on the CPU."""
    graph = graph_for(bundle.manifest.target, "onnx")
    host = next(each for each in devices.DEVICES if each.provider == HOST_PROVIDER)
    place = next(each.opener for each in host.runs if each.graph == graph)
    return cast("EngineOpener", imported(place))
