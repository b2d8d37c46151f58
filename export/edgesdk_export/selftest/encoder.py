"""Compare a written encoder with its checkpoint, and open it as an app does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgesdk.bundle.opening import open_bundle
from edgesdk.embedding.embedder import Embedder
from edgesdk.embedding.loading import load_embedder, load_reranker
from edgesdk.embedding.token_rows import FileRowTokenizer
from edgesdk.engines.registry import open_encoder
from edgesdk.errors import ExportError
from edgesdk_export.quality.evaluation_text import default_text
from edgesdk_export.weights import Float32

_TEXTS = 24
_MAX_TOKENS = 128
# As for decoders (see `weight_noise`): what random errors of the weights' size cost, four times.
_MARGIN = 4.0
_MIN_LIMIT = 1e-5
_HINT = "This is a fault of the export; please report it with the checkpoint's name."


def check_encoder(folder: Path, exact: Path, noisy: Path) -> str:
    """Compare a bundle's hidden states with those of the same checkpoint in float32.

    Args:
        noisy: the checkpoint with random errors of the size that the bundle's formats make.

    Returns:
        What the user should know: how far the vectors moved.

    Raises:
        ExportError: they are farther away than such errors explain, or not numbers.
    """
    reference = _means(exact)
    cosines = _cosines(_means(folder), reference)
    limit = max(_MIN_LIMIT, _MARGIN * float(np.mean(1 - _cosines(_means(noisy), reference))))
    moved = float(np.mean(1 - cosines))
    if not moved <= limit:
        raise ExportError(
            f"The file's hidden states are not the checkpoint's: their cosine is {1 - moved:.5f},"
            f" and {1 - limit:.5f} would do.",
            hint=_HINT,
        )
    return (
        f"Mean hidden states of {_TEXTS} texts against the checkpoint's: cosine"
        f" {cosines.mean():.5f}, {cosines.min():.5f} at least."
    )


def check_opens_encoder(folder: Path) -> None:
    """Load the sealed bundle as an app does, and use it.

    Raises:
        EdgeError: it does not open.
        ExportError: what it gives are not numbers.
    """
    if open_bundle(folder).manifest.reranking is not None:
        with load_reranker(folder, device="cpu", check_memory=False) as reranker:
            ranked = reranker.rank("a query", ["a document", "another one"], truncate=True)
        fine = all(np.isfinite(each.score) for each in ranked)
    else:
        with load_embedder(folder, device="cpu", check_memory=False) as embedder:
            fine = bool(np.isfinite(embedder.embed("a text", truncate=True)).all())
    if not fine:
        raise ExportError("The bundle was written, but gives no numbers.", hint=_HINT)


def _means(folder: Path) -> Float32:
    bundle = open_bundle(folder)
    limit = min(_MAX_TOKENS, bundle.manifest.shape.context_length)
    tokenizer = FileRowTokenizer(bundle.file(bundle.manifest.tokenizer.file))
    # Of growing length, so that a batch has rows that are filled up.
    words = default_text().text.split()
    texts = [" ".join(words[64 * i : 64 * i + 2 + 4 * i]) for i in range(_TEXTS)]
    engine = open_encoder(bundle, "cpu")
    try:
        states = engine.hidden_states([tokenizer.row(text, limit=limit) for text in texts])
    finally:
        engine.close()
    return np.stack([each.mean(axis=0) for each in states])


def _cosines(some: Float32, others: Float32) -> Float32:
    return np.diagonal(Embedder.similarity(some, others))
