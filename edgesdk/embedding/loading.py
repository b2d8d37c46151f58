"""Load what makes vectors of texts, and what scores pairs of them, by name or path."""

from __future__ import annotations

from pathlib import Path

from edgesdk.bundle.manifest import EmbeddingEntry, Pooling
from edgesdk.bundle.opening import Bundle
from edgesdk.embedding.embedder import Embedder
from edgesdk.embedding.pooled_decoder import PooledDecoder
from edgesdk.embedding.reranker import Reranker
from edgesdk.embedding.token_rows import DecoderRowTokenizer, FileRowTokenizer
from edgesdk.engines.registry import footprint, open_encoder, open_engine
from edgesdk.errors import BundleError, EdgeError
from edgesdk.loading import bundle_encoder, find
from edgesdk.system.plan import require_memory


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
        what: a bundle folder, or a name in the store.
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
    entry = source.manifest.reranking
    if entry is None:
        embeds = source.manifest.embedding is not None
        kind = "makes vectors of texts" if embeds else "answers prompts"
        raise _other_kind(source, kind, "edgesdk.load_embedder" if embeds else "edgesdk.load")
    tokens = FileRowTokenizer(source.file(source.manifest.tokenizer.file))
    encoder = open_encoder(source, device, threads=threads)
    return Reranker(source.manifest.name, encoder, tokens, entry)


def _found(what: str | Path, *, check_memory: bool, device: str) -> Bundle:
    source = find(what)
    if not isinstance(source, Bundle):
        raise BundleError(
            f"{source} is a bare .gguf file, which makes no vectors here.",
            hint="Export the original checkpoint: edgesdk export FOLDER.",
        )
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
