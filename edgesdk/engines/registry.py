"""Opens a model on the device that was asked for, by the records of `edgesdk.engines.devices`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

from edgesdk.bundle.adapter import Adapter
from edgesdk.bundle.manifest import BundleFormat
from edgesdk.bundle.opening import Bundle
from edgesdk.engines import devices
from edgesdk.engines.base import Engine, LoadSettings, no_adapters
from edgesdk.engines.device_choice import DeviceChoice, faster_pair, measured_choice
from edgesdk.engines.devices import DeviceRecord, imported
from edgesdk.engines.encoder_engine import EncoderEngine
from edgesdk.engines.selection import AUTO, DeviceCandidate, fitting, select
from edgesdk.errors import EngineError, InvalidOption, MissingExtra
from edgesdk.system.plan import Footprint
from edgesdk.system.resources import available_bytes, thread_count


class EngineOpener(Protocol):
    """Loads a model: a bundle, or a bare model file where the format allows that."""

    def __call__(
        self, source: Bundle | Path, *, record: DeviceRecord, settings: LoadSettings
    ) -> Engine: ...


class EncoderOpener(Protocol):
    """Loads an encoder: a bundle's, or a bare model file where the format allows that."""

    def __call__(
        self, source: Bundle | Path, *, record: DeviceRecord, settings: LoadSettings
    ) -> EncoderEngine: ...


def open_encoder(
    source: Bundle | Path, device: str = AUTO, *, threads: int | None = None
) -> EncoderEngine:
    """Load the encoder of an opened bundle, or a bare `.gguf` file for its hidden states.

    Raises:
        InvalidOption: no engine runs such an encoder on `device`.
        UnsupportedBundle: the bundle was exported for a device that is not known here.
        MissingExtra: the provider's package is not installed.
        BundleError, EngineError: it cannot be loaded.
    """
    settings = LoadSettings(device, thread_count(threads))
    for candidate in fitting(source, device):
        if candidate.support.encoder:
            opener = cast("EncoderOpener", imported(candidate.support.encoder))
            return opener(source, record=candidate.record, settings=settings)
    raise InvalidOption(
        f"No engine runs encoders on the device {device!r}.", hint='Leave out the device: "auto".'
    )


def open_engine(
    source: Bundle | Path,
    device: str = AUTO,
    *,
    threads: int | None = None,
    context: int | None = None,
    options: Mapping[str, object] | None = None,
    allow_fallback: bool = False,
    progress: Callable[[int, int], None] | None = None,
    batch_invariant: bool = True,
    adapter: Adapter | None = None,
) -> Engine:
    """Load an opened bundle, or a bare `.gguf` file.

    Where several devices fit, each is measured once; see `edgesdk.engines.device_choice`.

    Args:
        device: "auto", a kind ("cpu", "gpu", "npu"), or a device as its record names it; see
            `edgesdk.engines.selection.select`.
        threads: CPU threads; None for one per physical core.
        context: most tokens that one sequence may hold; None for the model's own limit, which it
            never exceeds.
        options: of the provider, as its record lists them.
        allow_fallback: let another device run the model, or a part of it, where `device` cannot;
            the engine's placement then says so.
        progress: see `LoadSettings`.
        batch_invariant: see `edgesdk.loading.load`.
        adapter: changes the model's answers.

    Raises:
        AdapterMismatch: the adapter is for another model.
        InvalidOption: no engine runs such a model on `device`, or an option is out of range.
        DeviceUnavailable: the device is not here, or does not work.
        UnsupportedBundle: the bundle was exported for a device that is not known here.
        MissingExtra: the provider's package is not installed.
        BundleError, EngineError: the model cannot be loaded.
    """
    if context is not None and context < 1:
        raise InvalidOption(f"context must be at least 1 token, not {context}.")
    selection = select(source, device, allow_fallback=allow_fallback)
    options = options or {}
    settings = LoadSettings(
        device,
        thread_count(threads),
        context,
        allow_fallback=allow_fallback,
        progress=progress,
        batch_invariant=batch_invariant,
        adapter=adapter,
    )
    passed_over = selection.passed_over
    candidates = with_options(selection.candidates, device, options)

    def load_on(candidate: DeviceCandidate) -> Engine:
        own = options if takes_options(candidate.record, device) else {}
        opener = cast("EngineOpener", imported(candidate.support.opener))
        engine = opener(
            source,
            record=candidate.record,
            settings=replace(settings, options=own, passed_over=passed_over),
        )
        if adapter is not None and engine.info.adapter is None:
            engine.close()
            raise no_adapters(candidate.record.device)
        return engine

    # Others only stand in for what was asked for, however fast they are.
    asked = [each for each in candidates if takes_options(each.record, device)] or candidates
    if len(asked) > 1 and isinstance(source, Bundle):
        choice = measured_choice(source, asked, settings.threads, load_on)
        if device == AUTO and (pair := _pair(choice, asked, source)) is not None:
            try:
                return _load_pair(pair, load_on)
            except (EngineError, MissingExtra) as error:
                passed_over += (f"two devices together: {error.message}",)
        ordered, slower = _fastest_first(choice, asked)
        passed_over += slower
        candidates = ordered + [each for each in candidates if each not in asked]
    failed: EngineError | MissingExtra | None = None
    for candidate in candidates:
        try:
            return load_on(candidate)
        except (EngineError, MissingExtra) as error:
            # Who asked for one device is told what is wrong with it, and not with the next one.
            failed = failed or error
            passed_over += (f"{candidate.record.name}: {error.message}",)
    assert failed is not None, "a selection has a candidate"
    raise failed


def takes_options(record: DeviceRecord, device: str) -> bool:
    """Whether the options that came with `device` are for that record. They are not where it only
    stands in for the device of that name."""
    return device in (AUTO, record.device, *record.kinds)


def with_options(
    candidates: tuple[DeviceCandidate, ...], device: str, options: Mapping[str, object]
) -> list[DeviceCandidate]:
    """Those that take the options, or that these are not for.

    Raises:
        InvalidOption: there is none; the words are those of the first.
    """
    found: list[DeviceCandidate] = []
    refused: InvalidOption | None = None
    for each in candidates:
        try:
            if takes_options(each.record, device):
                check_options(each.record, options)
            found.append(each)
        except InvalidOption as error:
            if device == each.record.device:
                raise
            refused = refused or error
    if not found:
        assert refused is not None, "a selection has a candidate"
        raise refused
    return found


def _pair(
    choice: DeviceChoice, candidates: list[DeviceCandidate], bundle: Bundle
) -> tuple[DeviceCandidate, DeviceCandidate] | None:
    """The device for prompts and the one for answers, where two are worth it; else None."""
    by_name = {each.record.name: each for each in candidates}
    for joiner in {each.support.joiner for each in candidates} - {""}:
        joined = [e for e in choice.speeds if by_name[e.provider].support.joiner == joiner]
        found = faster_pair(joined)
        # Each of them holds the weights.
        if found is not None and available_bytes() > 3 * bundle.size:
            prefill, decode = found
            return by_name[prefill.provider], by_name[decode.provider]
    return None


def _load_pair(
    pair: tuple[DeviceCandidate, DeviceCandidate], load_on: Callable[[DeviceCandidate], Engine]
) -> Engine:
    prefill = load_on(pair[0])
    try:
        decode = load_on(pair[1])
    except BaseException:
        prefill.close()
        raise
    join = cast("Callable[[Engine, Engine], Engine]", imported(pair[0].support.joiner))
    return join(prefill, decode)


def _fastest_first(
    choice: DeviceChoice, candidates: list[DeviceCandidate]
) -> tuple[list[DeviceCandidate], tuple[str, ...]]:
    """The candidates that could be measured, the fastest first, and what speaks against the others.

    Where none could be, all of them: their engines say why.
    """
    works = [each for each in choice.speeds if each.failure is None]
    if not works:
        return candidates, ()
    rank = {speed.provider: place for place, speed in enumerate(works)}
    found = [each for each in candidates if each.record.name in rank]
    reasons = [f"{each.line()}, which is slower" for each in works[1:]]
    reasons += [each.line() for each in choice.speeds if each.failure is not None]
    return sorted(found, key=lambda each: rank[each.record.name]), tuple(reasons)


def footprint(source: Bundle | Path, device: str = AUTO) -> Footprint:
    """Say what an opened bundle, or a bare `.gguf` file, takes in memory; nothing is loaded, and no
    device is looked for.

    Raises:
        InvalidOption: no engine runs such a model on `device`.
        UnsupportedBundle: the bundle was exported for a device that is not known here.
        EngineError: the file cannot be read, or is damaged.
    """
    support = fitting(source, device)[0].support
    measure = cast("Callable[[Bundle | Path], Footprint]", imported(support.footprint))
    return measure(source)


def device_names(model_format: BundleFormat | None = None) -> list[str]:
    """Name the devices that run models of a format, the best first; None for any format."""
    found = [
        record.device
        for record in devices.DEVICES
        if any(model_format in (None, support.format) for support in record.runs)
    ]
    return list(dict.fromkeys(found))


def target_names() -> list[str]:
    """Name what a bundle can be exported for: devices that run models, and kinds of them."""
    kinds = [record.kind for record in devices.DEVICES if record.runs]
    return list(dict.fromkeys([*device_names(), *kinds]))


def check_options(record: DeviceRecord, options: Mapping[str, object]) -> None:
    """Raise InvalidOption unless `options` are those of the record.

    onnxruntime takes any name, and ignores those that the provider does not know.
    """
    by_name = {option.name: option for option in record.options}
    for name, value in options.items():
        option = by_name.get(name)
        if option is None:
            known = ", ".join(by_name) or "none"
            raise InvalidOption(f"{record.name} has no option {name!r}.", hint=f"It has: {known}.")
        if type(value) is not option.kind:
            raise InvalidOption(
                f"The option {name!r} of {record.name} must be {option.kind.__name__}, not"
                f" {value!r}."
            )
        if option.choices and value not in option.choices:
            choices = ", ".join(map(str, option.choices))
            raise InvalidOption(
                f"The option {name!r} of {record.name} must be one of {choices}; not {value!r}."
            )
