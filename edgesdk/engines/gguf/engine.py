"""A GGUF model, bare or from a bundle, on the CPU."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgesdk.bundle.adapter import Adapter
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import EngineInfo, LoadSettings, Placement
from edgesdk.engines.devices import DeviceRecord
from edgesdk.engines.gguf.batching import PREFILL_STEP
from edgesdk.engines.gguf.context import LlamaContext
from edgesdk.engines.gguf.decode_state import GgufDecodeState
from edgesdk.engines.gguf.header_checks import check_header, read_header, remembered
from edgesdk.engines.gguf.library import LlamaLibrary, load_library
from edgesdk.engines.gguf.native_weights import NativeWeights
from edgesdk.engines.gguf.tokenizer import LlamaCppTokenizer
from edgesdk.engines.saved_state import KvIdentity
from edgesdk.errors import EngineError
from edgesdk.system.resources import thread_count

_SAMPLES, _SAMPLE_BYTES = 256, 2**16


class GgufEngine:
    """Implements `edgesdk.engines.base.AdaptableEngine`. Sequences of several threads share
    batches."""

    def __init__(
        self,
        library: LlamaLibrary,
        context: LlamaContext,
        info: EngineInfo,
        kv_identity: KvIdentity,
        source: Bundle | Path,
    ) -> None:
        self._source = source
        self._library = library
        self._context = context
        self.info: Final = info
        self.kv_identity: Final = kv_identity

    def new_state(self) -> GgufDecodeState:
        _ = self._context.model  # raises where the engine is closed
        return GgufDecodeState(
            self._context, context_length=self.info.context_length, kv_identity=self.kv_identity
        )

    def tokenizer(self) -> LlamaCppTokenizer:
        """The tokenizer that the file carries."""
        _ = self._context.model
        return LlamaCppTokenizer(self._library.api, self._context)

    def chat_template(self, name: str | None = None) -> str | None:
        """The Jinja chat template that the file carries, if it does; `name` is that of another than
        the default one."""
        key = None if name is None else name.encode()
        template = self._library.api.llama_model_chat_template(self._context.model, key)
        return None if template is None else str(template.decode("utf-8", "replace"))

    def with_adapter(self, adapter: Adapter) -> GgufEngine:
        started = time.perf_counter()
        weights = self._context.weights
        if isinstance(self._source, Path):
            raise EngineError(
                f"{self._source} is a bare file, and adapters are for bundles.",
                hint="Export it first: edgesdk export FILE --format gguf.",
            )
        bundle = self._source
        adapter.require_base(bundle.sha256, bundle.path)
        context = LlamaContext(
            self._library,
            weights,
            threads=thread_count(self.info.threads),
            context_length=self.info.context_length,
            batch_invariant=self.info.batch_invariant,
            adapter=weights.load_adapter(adapter.role_file("adapter")),
        )
        info = replace(self.info, adapter=adapter.name, load_seconds=time.perf_counter() - started)
        identity = adapter.identity(bundle.sha256)
        kv_identity = replace(self.kv_identity, model=identity, adapter=adapter.name)
        return GgufEngine(self._library, context, info, kv_identity, bundle)

    def close(self) -> None:
        self._context.close()


def open_engine(
    source: Bundle | Path,
    *,
    record: DeviceRecord,
    settings: LoadSettings,
) -> GgufEngine:
    """Load a GGUF bundle, or a bare `.gguf` file.

    Raises:
        MissingExtra: llama-cpp-python is not installed.
        AdapterMismatch: the adapter of `settings` is for another bundle.
        EngineError: llama.cpp cannot load the file, or its adapter.
    """
    started = time.perf_counter()
    library = load_library()
    api = library.api
    if isinstance(source, Bundle):
        path, identity = source.role_file("decoder"), source.sha256
    else:
        path, identity = source, ""
    weights = _load(library, path)
    trained = api.llama_model_n_ctx_train(weights.pointer)
    context_length = min(trained, settings.context or trained)
    cache = LlamaContext(
        library,
        weights,
        threads=settings.threads,
        context_length=context_length,
        batch_invariant=settings.batch_invariant,
    )
    info = EngineInfo(
        name=f"llama.cpp (llama-cpp-python {library.version})",
        requested_device=settings.requested_device,
        placement=Placement(
            record.device, record.name, "the CPU", passed_over=settings.passed_over
        ),
        vocab_size=cache.vocab_size,
        context_length=context_length,
        load_seconds=time.perf_counter() - started,
        concurrency=record.concurrency,
        threads=settings.threads,
        prefill_step=PREFILL_STEP if cache.batch_invariant else 0,
        batch_invariant=cache.batch_invariant,
    )
    unit = "context" if cache.windowed else "sequence"
    kv_identity = KvIdentity(
        engine="gguf",
        model=identity or fingerprint(path),
        layout=f"llama.cpp {unit} state, {record.kv_type}, llama-cpp-python {library.version}",
    )
    engine = GgufEngine(library, cache, info, kv_identity, source)
    if settings.adapter is None:
        return engine
    try:
        return engine.with_adapter(settings.adapter)
    finally:
        engine.close()


def fingerprint(path: Path) -> str:
    """Identity of a bare model file: SHA-256 of its size and of 256 even samples of 64 KiB.

    A whole hash of gigabytes would make each start slow. Files under 16 MiB are covered whole;
    of a larger one the header and parts of most tensors are, which tells models and fine-tunings
    apart, and is not meant to resist an attacker.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        digest.update(size.to_bytes(8, "little"))
        last = max(size - _SAMPLE_BYTES, 0)
        for sample in range(_SAMPLES):
            stream.seek(last * sample // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _load(library: LlamaLibrary, path: Path) -> NativeWeights:
    check_header(read_header(path), path)
    # A vocabulary takes megabytes.
    remembered.cache_clear()
    params = library.api.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = library.extra_buffers
    library.listen()
    model = library.api.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        said = library.take_errors() or "it gives no reason"
        raise EngineError(
            f"llama.cpp cannot load {path}: {said}.", hint="Download or export the model again."
        )
    weights = NativeWeights(library, model)
    if not library.api.llama_model_has_decoder(model):
        raise EngineError(
            f"{path} is an encoder; it cannot generate text.",
            hint="Load it with edgesdk.load_embedder.",
        )
    return weights
