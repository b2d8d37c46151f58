"""Load what makes vectors of texts, and what scores pairs of them, by name or path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgesdk.bundle.manifest import EmbeddingEntry, Pooling
from edgesdk.bundle.opening import Bundle
from edgesdk.embedding.embedder import Embedder
from edgesdk.embedding.pooled_decoder import PooledDecoder
from edgesdk.embedding.reranker import Reranker
from edgesdk.embedding.token_rows import DecoderRowTokenizer, FileRowTokenizer, RowTokenizer
from edgesdk.engines.registry import footprint, open_encoder, open_engine
from edgesdk.errors import BundleError, EdgeError
from edgesdk.loading import bundle_encoder, find
from edgesdk.system.gguf_header import read_gguf_header
from edgesdk.system.plan import require_memory

# As llama.cpp counts them; 0 is none, 4 a score.
_POOLINGS: Mapping[object, Pooling] = {1: "mean", 2: "cls", 3: "last"}


def load_embedder(
    what: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    pooling: Pooling | None = None,
    check_memory: bool = True,
) -> Embedder:
    """Load a model that makes vectors of texts.

    Args:
        what: a bundle folder, a `.gguf` file, or a name in the store.
        device: as for `edgesdk.load`.
        threads: CPU threads; None for one per physical core.
        pooling: of a bundle that says nothing of it: "last" makes vectors with the last hidden
            states of any decoder.
        check_memory: refuse a model that cannot fit, instead of being killed for it.

    Raises:
        UnknownModel: there is no such file, nor such a name in the store.
        BundleError: the bundle is damaged, or is of a model that makes no vectors.
        InvalidOption: no engine runs the model on that device.
        DeviceUnavailable, EngineError, MissingExtra: as `edgesdk.load`.
        NotEnoughMemory: the device's free memory cannot hold it.
    """
    source = _found(what, check_memory=check_memory, device=device)
    if isinstance(source, Path):
        return _load_file(source, device, threads, pooling)
    manifest = source.manifest
    if manifest.reranking is not None:
        raise _other_kind(source, "scores pairs of texts", "edgesdk.load_reranker")
    entry = manifest.embedding
    if pooling is not None and entry is None:
        entry = EmbeddingEntry(pooling=pooling, max_tokens=manifest.shape.context_length)
    if entry is None:
        raise BundleError(
            f"The bundle {source.path} does not say how its hidden states become a vector: it"
            " answers prompts.",
            hint='edgesdk.load runs it; pooling="last" makes vectors of it all the same.',
        )
    dimensions = manifest.shape.hidden_size
    if "encoder" in manifest.roles:
        tokens = FileRowTokenizer(source.file(manifest.tokenizer.file))
        encoder = open_encoder(source, device, threads=threads)
        return Embedder(manifest.name, encoder, tokens, entry, dimensions=dimensions)
    rows = DecoderRowTokenizer(bundle_encoder(source), entry.suffix)
    decoder = PooledDecoder(open_engine(source, device, threads=threads), entry.pooling)
    return Embedder(manifest.name, decoder, rows, entry, dimensions=dimensions)


def load_reranker(
    what: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    check_memory: bool = True,
) -> Reranker:
    """Load a cross-encoder, which scores documents for a query; see `load_embedder`."""
    source = _found(what, check_memory=check_memory, device=device)
    if isinstance(source, Path):
        raise BundleError(
            f"{source} is a bare .gguf file, which scores nothing here.",
            hint="Export the original checkpoint: edgesdk export FOLDER.",
        )
    entry = source.manifest.reranking
    if entry is None:
        embeds = source.manifest.embedding is not None
        kind = "makes vectors of texts" if embeds else "answers prompts"
        raise _other_kind(source, kind, "edgesdk.load_embedder" if embeds else "edgesdk.load")
    tokens = FileRowTokenizer(source.file(source.manifest.tokenizer.file))
    encoder = open_encoder(source, device, threads=threads)
    return Reranker(source.manifest.name, encoder, tokens, entry)


def _load_file(path: Path, device: str, threads: int | None, pooling: Pooling | None) -> Embedder:
    """A bare `.gguf` file: its header says how vectors are made, and its tokenizer is its own."""
    values = read_gguf_header(path).metadata
    kind = values.get("general.architecture")
    pooling = pooling or _POOLINGS.get(values.get(f"{kind}.pooling_type"))
    if pooling is None:
        raise BundleError(
            f"{path} does not say how its hidden states become a vector.",
            hint='Where it answers prompts, edgesdk.load runs it; pooling="last" makes vectors of'
            " it all the same.",
        )
    engine = open_encoder(path, device, threads=threads)
    assert isinstance(engine, RowTokenizer)
    entry = EmbeddingEntry(pooling=pooling, max_tokens=engine.info.context_length)
    dimensions = int(str(values[f"{kind}.embedding_length"]))
    return Embedder(path.stem, engine, engine, entry, dimensions=dimensions)


def _found(what: str | Path, *, check_memory: bool, device: str) -> Bundle | Path:
    source = find(what)
    if check_memory:
        try:
            needed = footprint(source, device)
        except EdgeError:
            # Opening it says better what is wrong.
            return source
        require_memory(needed, context=None)
    return source


def _other_kind(source: Bundle, does: str, loader: str) -> BundleError:
    return BundleError(f"The bundle {source.path} {does}.", hint=f"Load it with {loader}.")
