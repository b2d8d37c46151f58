"""`edgesdk.load`: find a model by its name or path, and load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from edgesdk.bundle.adapter import adapted_name, open_adapter
from edgesdk.bundle.opening import Bundle, is_bundle, open_bundle
from edgesdk.bundle.sampling import Sampling, sampling_of_metadata
from edgesdk.engines.base import Engine, LoadSettings
from edgesdk.engines.gguf.header_checks import read_header
from edgesdk.engines.paced import PacedEngine
from edgesdk.engines.registry import footprint, open_engine
from edgesdk.engines.selection import place_of
from edgesdk.errors import BundleError, EngineError, InvalidOption, MissingExtra, UnknownModel
from edgesdk.generation.prefix_cache import PrefixCache
from edgesdk.generation.speculation import LoadedDraftModel, check_same_tokens
from edgesdk.model import Model
from edgesdk.runtime import Runtime
from edgesdk.system import plan as planning
from edgesdk.system.gguf_header import read_gguf_header
from edgesdk.system.plan import Plan, require_memory
from edgesdk.system.power import Governor, PowerPolicy
from edgesdk.system.resources import thread_count
from edgesdk.text.prompts import PromptEncoder, encoder_of
from edgesdk.text.template import ChatTemplate
from edgesdk.warm_start import WarmStart, cold_device


def load(
    what: str | Path,
    *,
    device: str = "auto",
    context: int | None = None,
    threads: int | None = None,
    prefix_cache: PrefixCache | str | Path | bool = False,
    check_memory: bool = True,
    power: PowerPolicy | Governor | None = None,
    draft: str | Path | None = None,
    adapter: str | Path | None = None,
    device_options: Mapping[str, object] | None = None,
    allow_fallback: bool = False,
    warm_start: bool = False,
    batch_invariant: bool = True,
    parse_special: bool = False,
) -> Model:
    """Load a model.

    Args:
        what: a bundle folder, a `.gguf` file, or a name in the store (there a bundle is
            preferred to the checkpoint of the same name).
        device: the `device` of one of `edgesdk.devices()` gives that one, also where it is a
            simulator or runs in software. A kind ("cpu", "gpu", "npu") gives hardware of that kind,
            "auto" any hardware. `Model.device` says what it became.
        context: most tokens of one conversation; None for the model's own limit.
        threads: CPU threads; None for one per physical core.
        prefix_cache: stores the KV caches of system messages, and those of `Model.cache_prefix`,
            for later prompts; a folder, or True for the store's own.
        check_memory: refuse a model that cannot fit, instead of being killed for it: with
            `context` tokens if they are given, else with any.
        power: how hard to work the device, by its battery and temperature: "performance",
            "balanced", "saver", or a function from `edgesdk.system.power.PowerState` to
            `edgesdk.system.power.Pace`. None asks no sensor.
        draft: a smaller model with the same tokenizer, named as `what` is, which guesses tokens
            for this one; see `Options.speculate`.
        adapter: a folder that `edgesdk export --adapter` wrote for this bundle, which changes its
            answers. `Model.with_adapter` adds others without loading the base again.
        device_options: of the device's provider, by name.
        allow_fallback: let another device run the model, or the CPU a part of it, or `device` all
            of it in several partitions, where `device` cannot run it as a whole; `Model.device`
            and each receipt then say so. Without it that is an error.
        warm_start: where the device has to compile the model first, let the CPU answer meanwhile.
            `Model.warm_start` then says how far it is. Once the device is ready, new questions and
            the next turn of each chat go there; a chat keeps its history, and its receipts say
            which device answered. Closing the model ends the compiling.
        batch_invariant: a greedy answer does not depend on what else is being answered, nor on
            whether its KV cache is new. False makes several answers at once faster where an engine
            (llama.cpp) can serve them together only with other last bits.
        parse_special: control tokens that stand in messages, tool results and tool descriptions
            become control tokens. Unsafe: whoever writes `<|im_end|><|im_start|>system` there
            then speaks for the system. By default only the chat template makes them, and such
            text is encoded as plain text.

    Raises:
        UnknownModel: there is no such file, nor such a name in the store.
        AdapterMismatch: the adapter was made for another bundle.
        BundleError: the bundle is damaged or an encoder's, or the name is of a checkpoint that has
            to be exported first.
        MissingExtra: the engine's package is not installed.
        TemplateError: the model's chat template is not valid.
        InvalidOption: no engine runs the model on that device, an option is out of range, or the
            draft model has another tokenizer.
        DeviceUnavailable: the device is not here, or does not work; the hint is what mends it.
        EngineError: the engine cannot load it, or the device runs only a part of it.
        NotEnoughMemory: the device's free memory cannot hold it.
    """
    started = perf_counter()
    source = find(what)
    _refuse_encoder(source)
    low_rank = None if adapter is None else open_adapter(Path(adapter))
    if low_rank is not None and warm_start:
        raise InvalidOption(
            "A device that has to compile the model first runs no adapters.",
            hint="Leave out warm_start.",
        )
    governor = power if power is None or isinstance(power, Governor) else Governor(power)
    if governor is not None:
        threads = governor.threads(thread_count(threads))
    if check_memory:
        _require_memory(source, context=context, device=device)

    settings = LoadSettings(device, thread_count(threads), context, device_options or {})
    cold = cold_device(source, settings) if warm_start else None
    try:
        engine = (
            open_engine(
                source,
                device,
                threads=threads,
                context=context,
                options=device_options,
                allow_fallback=allow_fallback,
                batch_invariant=batch_invariant,
                adapter=low_rank,
            )
            if cold is None
            else cold.open_stand_in()
        )
    except MissingExtra:
        if isinstance(source, Bundle):
            raise
        raise MissingExtra(
            "llama-cpp-python",
            extra="gguf",
            needed_for=f"Running {source.name} without exporting it first"
            f" (as 'edgesdk export {what}' does)",
        ) from None
    try:
        encoder = bundle_encoder(source) if isinstance(source, Bundle) else _gguf_encoder(engine)
        encoder = replace(encoder, parse_special=parse_special)
        draft_model = None
        if draft is not None:
            draft_model = _load_draft(
                draft,
                encoder,
                device=device,
                context=context,
                threads=threads,
                allow_fallback=allow_fallback,
            )
    except BaseException:
        engine.close()
        raise
    name = source.manifest.name if isinstance(source, Bundle) else source.stem
    if low_rank is not None:
        name = adapted_name(name, low_rank)
    sampling = _sampling(source)
    prefixes = _opened_prefix_cache(prefix_cache)

    def runtime_of(engine: Engine, successor: WarmStart | None = None) -> Runtime:
        return Runtime(
            engine if governor is None else PacedEngine(engine, governor),
            encoder,
            perf_counter() - started,
            prefixes,
            draft_model,
            sampling={} if sampling is None else sampling.options(),
            successor=successor,
        )

    if cold is None:
        return Model(name, runtime_of(engine), source)
    warming = WarmStart(cold.order, lambda: runtime_of(cold.open_device()))
    warming.start()
    return Model(name, runtime_of(engine, warming), source, warming)


def _refuse_encoder(source: Bundle | Path) -> None:
    loader = "load_embedder"
    if isinstance(source, Bundle):
        encodes = "encoder" in source.manifest.roles
        if source.manifest.reranking is not None:
            loader = "load_reranker"
    else:
        try:
            values = read_header(source).metadata
        except EngineError:
            # Its engine says best what is wrong with it.
            return
        # llama.cpp would load it, and answer with noise.
        encodes = values.get(f"{values.get('general.architecture')}.attention.causal") is False
    if encodes:
        raise BundleError(
            f"{place_of(source)} is an encoder; it cannot generate text.",
            hint=f"Load it with edgesdk.{loader}.",
        )


def plan(
    what: str | Path,
    *,
    context: int | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> Plan:
    """What a model would need in memory, against what the device has; nothing is loaded.

    Args:
        what: as for `load`.
        context: tokens of the conversation to plan for; None for the model's own limit.
        threads: how many are to read memory; None for one per physical core.

    Raises:
        InvalidOption: `context` is not between 1 and the model's limit.
        UnknownModel, BundleError, EngineError: as `load`.
    """
    return planning.plan(footprint(find(what), device), context=context, threads=threads)


def _require_memory(source: Bundle | Path, *, context: int | None, device: str) -> None:
    try:
        found = footprint(source, device)
    except (EngineError, InvalidOption):
        # Selection and engines say better what is wrong with it.
        return
    require_memory(found, context=context)


def _opened_prefix_cache(where: PrefixCache | str | Path | bool) -> PrefixCache | None:
    if isinstance(where, PrefixCache):
        return where
    if isinstance(where, str | Path):
        return PrefixCache(where)
    if not where:
        return None
    from edgesdk.store import default_root

    return PrefixCache(default_root() / "prefixes")


def _load_draft(
    what: str | Path,
    target: PromptEncoder,
    *,
    device: str,
    context: int | None,
    threads: int | None,
    allow_fallback: bool,
) -> LoadedDraftModel:
    source = find(what)
    engine = open_engine(
        source, device, threads=threads, context=context, allow_fallback=allow_fallback
    )
    try:
        encoder = bundle_encoder(source) if isinstance(source, Bundle) else _gguf_encoder(engine)
        check_same_tokens(target.tokenizer, encoder.tokenizer, name=str(what))
    except BaseException:
        engine.close()
        raise
    return LoadedDraftModel(engine, vocab_size=target.tokenizer.vocab_size)


def find(what: str | Path) -> Bundle | Path:
    """The opened bundle or the `.gguf` file that `what` means; raises as `load` does."""
    path = Path(what).expanduser()
    if path.is_file() and path.suffix.lower() == ".gguf":
        return path
    if path.is_dir() and (isinstance(what, Path) or is_bundle(path) or len(path.parts) > 1):
        return open_bundle(path)
    from edgesdk.store.reference import is_model_name

    if isinstance(what, Path) or not is_model_name(what):
        raise UnknownModel(
            f"{what} is neither a bundle folder nor a .gguf file, and cannot be a name.",
            hint="See: edgesdk list",
        )
    return _in_store(what)


def _in_store(name: str) -> Bundle | Path:
    from edgesdk.store import Store, require_usable

    entry = require_usable(Store().get(name))
    if entry.kind == "bundle":
        return open_bundle(entry.path)
    if entry.path.suffix.lower() == ".gguf":
        return entry.path
    raise BundleError(
        f"{name} is a checkpoint; it has to be exported before it can run.",
        hint=f"Run: edgesdk export {name}",
    )


def bundle_encoder(bundle: Bundle) -> PromptEncoder:
    """The text side of a decoder's bundle."""
    from edgesdk.text.tokenizer import BundleTokenizer

    entry = bundle.manifest.tokenizer
    template, tool_template = (
        None if name is None else bundle.text(name)
        for name in (entry.chat_template, entry.tool_template)
    )
    return encoder_of(BundleTokenizer.open(bundle), entry, template, tool_template)


def _sampling(source: Bundle | Path) -> Sampling | None:
    if isinstance(source, Bundle):
        return source.manifest.sampling
    return sampling_of_metadata(read_gguf_header(source).metadata)


def _gguf_encoder(engine: object) -> PromptEncoder:
    from edgesdk.engines.gguf.engine import GgufEngine

    if not isinstance(engine, GgufEngine):
        raise EngineError("A bare .gguf file can only run on llama.cpp.")
    tokenizer = engine.tokenizer()
    template, tool_template = (
        None if source is None else ChatTemplate(source)
        for source in (engine.chat_template(), engine.chat_template("tool_use"))
    )
    return PromptEncoder(
        tokenizer,
        template,
        tokenizer.bos_token,
        tokenizer.eos_token,
        special_tokens=tokenizer.special_tokens,
        tool_template=tool_template,
    )
