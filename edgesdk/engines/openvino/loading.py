"""What all models that OpenVINO runs have in common while they are loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesdk.engines.base import EngineInfo, LoadSettings, Placement
from edgesdk.engines.devices import DeviceRecord
from edgesdk.engines.openvino.library import reason
from edgesdk.engines.openvino.places import OpenVinoPlace
from edgesdk.errors import EngineError


def new_core(openvino: Any, settings: LoadSettings) -> Any:
    """An `openvino.Core` whose CPU device has the threads of `settings`."""
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": settings.threads})
    return core


def compiled_graph(
    core: Any, path: Path, place: OpenVinoPlace, properties: Mapping[str, object], *, hint: str
) -> Any:
    """The graph in `path` as an `openvino.CompiledModel`.

    Raises:
        EngineError: OpenVINO cannot compile it.
    """
    try:
        return core.compile_model(str(path), place.target, dict(properties))
    # A property that does not fit raises another error than a graph that does not.
    except (RuntimeError, TypeError, ValueError) as error:
        raise EngineError(
            f"OpenVINO cannot compile {path} for {place}: {reason(error)}.", hint=hint
        ) from error


def engine_info(
    openvino: Any,
    place: OpenVinoPlace,
    *,
    record: DeviceRecord,
    settings: LoadSettings,
    vocab_size: int,
    context_length: int,
    prefill_step: int,
    started: float,
) -> EngineInfo:
    """What an engine says of itself; `started` is when loading began (`time.perf_counter`)."""
    return EngineInfo(
        name=f"OpenVINO {openvino.__version__.partition('-')[0]} on {place.runs_on.kind}",
        requested_device=settings.requested_device,
        placement=Placement(
            record.device,
            record.name,
            str(place),
            in_software=place.in_software,
            passed_over=settings.passed_over,
        ),
        vocab_size=vocab_size,
        context_length=context_length,
        load_seconds=time.perf_counter() - started,
        concurrency=record.concurrency,
        threads=settings.threads if place.in_software else None,
        prefill_step=prefill_step,
    )
