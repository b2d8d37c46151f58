"""Measures once which of several devices answers with a model soonest, and keeps what came out.

A choice holds for one bundle and one set of devices: their providers' versions, their processors,
the CPU and its threads. Another set is measured anew. Only hardware is ever measured.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import Engine
from edgesdk.engines.selection import DeviceCandidate
from edgesdk.errors import EdgeError
from edgesdk.system.atomic_files import write_atomically
from edgesdk.system.home import default_root
from edgesdk.system.resources import cpu_info

_LOG = logging.getLogger("edgesdk.devices")

_PREFILL_TOKENS, _DECODE_TOKENS = 32, 8
# What is weighed: an answer as apps ask for.
PROMPT_TOKENS, ANSWER_TOKENS = 256, 64
# Two devices hold the model twice; they have to be worth it. Of the time that one alone takes.
_WORTH_TWO = 0.8
_INTERRUPTED = "the process ended while it was measured"


@dataclass(frozen=True)
class MeasuredDevice:
    """What was measured of a model on one device.

    Attributes:
        provider: as its record names it.
        prefill_seconds, decode_seconds: for one token; None where it could not be measured.
        failure: why not.
    """

    device: str
    provider: str
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    failure: str | None = None

    @property
    def answer_seconds(self) -> float:
        """For `PROMPT_TOKENS` of prompt and `ANSWER_TOKENS` of answer; infinite where unknown."""
        if self.prefill_seconds is None or self.decode_seconds is None:
            return float("inf")
        return PROMPT_TOKENS * self.prefill_seconds + ANSWER_TOKENS * self.decode_seconds

    def line(self) -> str:
        """One line for people."""
        if self.failure is not None:
            return f"{self.provider}: {self.failure}"
        return (
            f"{self.provider}: {self.answer_seconds:.2f} s for {PROMPT_TOKENS} tokens in and"
            f" {ANSWER_TOKENS} out"
        )


@dataclass(frozen=True)
class DeviceChoice:
    """The devices of this machine for one bundle, and how fast each is.

    Attributes:
        model: the bundle's name.
        bundle: its hash.
        device_set: what the measurement rests on, a line for each device and one for the CPU.
        speeds: the fastest first.
    """

    model: str
    bundle: str
    device_set: tuple[str, ...]
    speeds: tuple[MeasuredDevice, ...]


def faster_pair(
    speeds: Sequence[MeasuredDevice],
) -> tuple[MeasuredDevice, MeasuredDevice] | None:
    """The device for prompts and the one for answers, where two are worth it; else None.

    Args:
        speeds: of devices whose KV caches can go over to one another, at least one.
    """
    known = [each for each in speeds if each.failure is None]
    if not known:
        return None
    prefill = min(known, key=lambda each: each.prefill_seconds or 0.0)
    decode = min(known, key=lambda each: each.decode_seconds or 0.0)
    both = replace(decode, prefill_seconds=prefill.prefill_seconds).answer_seconds
    alone = min(each.answer_seconds for each in known)
    return (prefill, decode) if both <= _WORTH_TWO * alone else None


_CHOICE = TypeAdapter(DeviceChoice)


def measured_choice(
    bundle: Bundle,
    candidates: Sequence[DeviceCandidate],
    threads: int,
    open_on: Callable[[DeviceCandidate], Engine],
    folder: Path | None = None,
) -> DeviceChoice:
    """The kept choice for a bundle, after a measurement of the devices that it does not have.

    A driver may take the process down. So each device is noted before it is measured, and one that
    was never finished with counts as failed from then on.

    Args:
        candidates: hardware, of which each opens the bundle.
        open_on: loads the bundle on one of them.
        folder: where choices are kept; None for the data folder's own.
    """
    path = _path(bundle.sha256, folder)
    devices = _device_set(candidates, threads)
    kept = _read(path)
    if kept is None or kept.device_set != devices:
        kept = DeviceChoice(bundle.manifest.name, bundle.sha256, devices, ())
    for candidate in candidates:
        provider = candidate.record.name
        if any(each.provider == provider for each in kept.speeds):
            continue
        _LOG.info("Measuring %s on %s, once", bundle.manifest.name, provider)
        noted = MeasuredDevice(candidate.record.device, provider, failure=_INTERRUPTED)
        _write(path, replace(kept, speeds=(*kept.speeds, noted)))
        try:
            speed = _measure(candidate, open_on)
        except BaseException:
            # Stopped by the user, and by no fault of the device.
            _write(path, kept)
            raise
        speeds = sorted((*kept.speeds, speed), key=lambda each: each.answer_seconds)
        kept = replace(kept, speeds=tuple(speeds))
        _write(path, kept)
    return kept


def kept_choices(folder: Path | None = None) -> Iterator[DeviceChoice]:
    """All choices that are kept, by the model's name."""
    found = [_read(path) for path in sorted(_folder(folder).glob("*.json"))]
    yield from sorted((each for each in found if each is not None), key=lambda each: each.model)


def kept_choice(bundle: Bundle, folder: Path | None = None) -> DeviceChoice | None:
    """The choice that is kept for a bundle; None where nothing was measured."""
    return _read(_path(bundle.sha256, folder))


def _measure(
    candidate: DeviceCandidate, open_on: Callable[[DeviceCandidate], Engine]
) -> MeasuredDevice:
    speed = MeasuredDevice(candidate.record.device, candidate.record.name)
    try:
        engine = open_on(candidate)
        try:
            prefill, decode = measure_engine(engine)
        finally:
            engine.close()
    except EdgeError as error:
        return replace(speed, failure=error.message)
    return replace(speed, prefill_seconds=prefill, decode_seconds=decode)


def measure_engine(
    engine: Engine, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Seconds for each token of a prefill, and of a decode, after one of both that is not timed."""
    count = min(_PREFILL_TOKENS, engine.info.context_length - _DECODE_TOKENS)
    ids = np.random.default_rng(0).integers(0, engine.info.vocab_size, _PREFILL_TOKENS).tolist()
    count = max(count, 1)
    steps = min(_DECODE_TOKENS, max(engine.info.context_length - count, 1))
    state = engine.new_state()
    seconds = (0.0, 0.0)
    try:
        for _ in ("to warm up", "to measure"):
            state.rewind(0)
            begun = clock()
            state.extend(ids[:count])
            between = clock()
            for token in ids[:steps]:
                state.extend([token])
            seconds = ((between - begun) / count, (clock() - between) / steps)
    finally:
        state.close()
    return seconds


def _device_set(candidates: Sequence[DeviceCandidate], threads: int) -> tuple[str, ...]:
    cpu = cpu_info()
    processor = cpu.get("model name") or platform.processor() or platform.machine()
    found = [
        f"{each.record.name} {'' if each.found is None else each.found.found}"
        for each in candidates
    ]
    return (*sorted(found), f"{processor}, {os.cpu_count()} processors, {threads} threads")


def _folder(folder: Path | None) -> Path:
    return default_root() / "device-choices" if folder is None else folder


def _path(bundle: str, folder: Path | None) -> Path:
    return _folder(folder) / f"{hashlib.sha256(bundle.encode()).hexdigest()[:32]}.json"


def _read(path: Path) -> DeviceChoice | None:
    try:
        return _CHOICE.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _write(path: Path, choice: DeviceChoice) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_CHOICE.dump_python(choice, mode="json"), indent=2, allow_nan=False)
        write_atomically(path, text + "\n")
    except OSError as error:
        _LOG.info("The choice of a device was not kept: %s", error)
